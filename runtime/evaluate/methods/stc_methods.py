"""STC's own settings as methods: the presets, through the programs that stc-run runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import HIDDEN_OUT
from stc.engines.eager import EagerRunner
from stc.engines.engine import Tensor
from stc.manifest import VisionSpec
from stc.method.family import FrameKind, frame_macs, frame_program, indices_of
from stc.method.graphs import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    KEPT,
    KEPT_INDICES,
    PIXEL_VALUES,
    PROJECT,
    TOKENS,
)
from stc.method.pruner import PrunerMemory
from stc.program import Arrays, Program
from stc.runtime.evaluate.method import (
    CONTROL,
    Chooser,
    Encoded,
    Method,
    Pixels,
    Towers,
    parsed_value,
    refuse_unknown,
)
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, Settings, choose

PAPER = "2512.00891"
DENSE = "off"
"""The method that all others are compared with."""


@dataclass(frozen=True, kw_only=True)
class StcMethod(Method):
    """The preset called `name`, and the fields of Settings that are `changed`."""

    source: str = PAPER
    changed: Mapping[str, Any] = field(default_factory=dict)

    def chosen(self, spec: VisionSpec) -> Settings:
        """Its settings for a model of `spec`. Raises SettingsError when they do not fit."""
        return choose(self.name, spec.pooled, **self.changed)

    def open(self, towers: Towers) -> StcEncoder:
        return StcEncoder(towers.vision, self.chosen(towers.spec))

    def chooser(self, towers: Towers) -> Chooser | None:
        chosen = self.chosen(towers.spec)
        if chosen.kept(towers.spec.pooled) == towers.spec.pooled:
            return None
        return StcChooser(towers.vision, chosen)

    def settings(self, spec: VisionSpec) -> dict[str, Any]:
        return asdict(self.chosen(spec))

    def given(self, options: Mapping[str, str]) -> StcMethod:
        preset, known = PRESETS[self.name], [one.name for one in fields(Settings)]
        parsed = {}
        for name, text in options.items():
            refuse_unknown(self.name, name, known)
            parsed[name] = parsed_value(self.name, name, text, getattr(preset, name))
        replace(preset, **parsed)  # values out of range are refused before anything is opened
        return replace(self, changed={**self.changed, **parsed})


STC_METHODS = (
    StcMethod(name=DENSE, about="every token of every frame is computed and read", source=CONTROL),
    StcMethod(name="cacher", about="3 of 4 frames recompute a quarter of their tokens"),
    StcMethod(name="pruner", about="a quarter of the tokens is read"),
    StcMethod(name="paper", about="STC-Cacher and STC-Pruner as the paper sets them"),
    StcMethod(name="released", about="the same as its released code sets them"),
)


class StcEncoder:
    """A stream of `settings` through `tower`: what `StreamSession` computes, to the bit.

    hidden: [T, C] of the last frame after the last block.
    Raises SettingsError when the settings do not fit the model.
    """

    def __init__(self, tower: VisionTower, settings: Settings) -> None:
        spec = tower.spec
        self._tower, self._settings = tower, settings
        self._runner = tower.runner(settings, captured=False)
        self._macs = frame_macs(spec, tower.precision, settings)
        self._memory = memory_of(tower, settings)
        self._pruned = settings.kept(spec.pooled) < spec.pooled
        self._index = 0
        self.hidden: NDArray[Any] = np.empty((0, spec.width), tower.dtype)

    def push(self, pixels: Pixels) -> Encoded:
        reference = self._settings.is_reference(self._index)
        kind: FrameKind = "reference" if reference else "reuse"
        self._index += 1
        inputs = {PIXEL_VALUES: pixels.astype(self._tower.dtype, copy=False)}
        if self._pruned:
            inputs |= history(self._memory)
        seen: Arrays = {}
        blocks = 0

        def look(graph: str, outputs: Mapping[str, Tensor]) -> None:
            nonlocal blocks
            if HIDDEN_OUT in outputs:
                blocks += 1
                if blocks == self._tower.spec.blocks:
                    seen[HIDDEN_OUT] = self._tower.backend.to_host(outputs[HIDDEN_OUT])
            elif graph == PROJECT and self._pruned:
                seen[TOKENS] = self._tower.backend.to_host(outputs[TOKENS])

        found = self._runner.run(kind, inputs, look).results
        self.hidden = seen[HIDDEN_OUT]
        recomputed, cost = found.get(indices_of(0)), self._macs[kind]
        if not self._pruned:
            everything = np.arange(self._tower.spec.pooled, dtype=np.int64)
            return Encoded(found[TOKENS], everything, found[TOKENS], recomputed, cost)
        self._memory.push(found[FRAME_MEAN])
        return Encoded(found[KEPT], found[KEPT_INDICES], seen[TOKENS], recomputed, cost)


class StcChooser:
    """What the pruner of `settings` keeps of tokens that it is given, by the tower's own graph."""

    def __init__(self, tower: VisionTower, settings: Settings) -> None:
        whole = frame_program(tower.spec, tower.precision, settings, "reference")
        prune = whole.calls[-1:]
        named = {name for call in prune for name in (*call.reads.values(), *call.writes.values())}
        buffers = {name: one for name, one in whole.buffers.items() if name in named}
        program = Program("prune", prune, buffers).given([TOKENS])
        self._dtype = tower.dtype
        self._runner = EagerRunner(tower.backend, [program], tower.engine)
        self._memory = memory_of(tower, settings)

    def __call__(self, whole: NDArray[Any]) -> NDArray[np.int64]:
        inputs = {TOKENS: whole.astype(self._dtype, copy=False), **history(self._memory)}
        found = self._runner.run("prune", inputs).results
        self._memory.push(found[FRAME_MEAN])
        kept: NDArray[np.int64] = found[KEPT_INDICES]
        return kept


def memory_of(tower: VisionTower, settings: Settings) -> PrunerMemory:
    """An empty memory for the pruner of `settings`."""
    width = tower.spec.language_width
    return PrunerMemory(settings.pruner, width=width, window=settings.anchor_window)


def history(memory: PrunerMemory) -> Arrays:
    """What the prune graph reads of `memory`."""
    return {HISTORY_MEAN: memory.mean, HISTORY_COUNT: np.array([memory.count], np.float32)}
