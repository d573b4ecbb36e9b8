"""A stream through a tower with all it computes on the host, which is what parity compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import HIDDEN, HIDDEN_OUT, PIXEL_VALUES, SCORE, TOKENS
from stc.engines.eager import EagerRunner
from stc.engines.engine import Tensor
from stc.method.family import frame_program, indices_of
from stc.method.graphs import PROJECT
from stc.runtime.vision.tower import VisionTower
from stc.settings import KEEP_ALL, SELECTIONS, Selection, Settings

Pixels = NDArray[np.float32]
"""pixel_values [3, Hpx, Wpx]."""
Forced = Sequence[NDArray[np.int64]]
"""The indices that every block recomputes, instead of those it would select."""


@dataclass(frozen=True)
class TowerFrame:
    """A frame's way through a tower.

    hidden_states: [T, C] after the embedding and after every block. tokens: [n, D].
    indices: int64 [M] of every block, all T on a reference frame.
    scores: float32 [T] of every block that was scored.
    """

    hidden_states: list[NDArray[Any]]
    tokens: NDArray[Any]
    indices: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]

    @property
    def hidden(self) -> NDArray[Any]:
        """[T, C] after the last block."""
        return self.hidden_states[-1]


class TowerStream:
    """A stream through `tower` that keeps every token; it does what TorchVision does.

    Its reuse frames recompute as many tokens as `settings` say, whatever they are asked for.
    """

    def __init__(self, tower: VisionTower, settings: Settings) -> None:
        self._tower = tower
        spec, precision = tower.spec, tower.precision
        whole = replace(settings, budget=KEEP_ALL)
        programs = [frame_program(spec, precision, whole, "reference")]
        for selection in SELECTIONS:
            chosen = replace(whole, selection=selection)
            program = replace(frame_program(spec, precision, chosen, "reuse"), name=selection)
            forced = replace(program.given(program.choices), name=f"{selection} forced")
            programs += [program, forced]
        self._runner = EagerRunner(tower.backend, programs, tower.engine)

    def dense(self, pixel_values: Pixels) -> NDArray[Any]:
        return self.reference(pixel_values).hidden

    def reference(self, pixel_values: Pixels) -> TowerFrame:
        everything = np.arange(self._tower.spec.tokens)
        states, tokens, _ = self._run("reference", pixel_values)
        return TowerFrame(states, tokens, [everything] * self._tower.spec.blocks, [])

    def reuse(
        self,
        pixel_values: Pixels,
        recomputed: int,
        selection: Selection,
        forced: Forced | None = None,
    ) -> TowerFrame:
        names = [indices_of(block) for block in range(self._tower.spec.blocks)]
        if forced is not None:
            given = dict(zip(names, forced, strict=True))
            if selection == "shared":  # block 0 chooses for all
                given = {names[0]: forced[0]}
            states, tokens, scores = self._run(f"{selection} forced", pixel_values, given)
            return TowerFrame(states, tokens, list(forced), scores)
        states, tokens, scores = self._run(selection, pixel_values)
        # Where block 0 chose for all, the others wrote none.
        chosen = [name if self._runner.wrote(name) else names[0] for name in names]
        return TowerFrame(states, tokens, list(map(self._runner.read, chosen)), scores)

    def project(self, hidden: NDArray[np.float32]) -> NDArray[Any]:
        backend = self._tower.backend
        on_device = backend.to_device(hidden.astype(self._tower.dtype))
        return backend.to_host(self._tower.engine(PROJECT)({HIDDEN: on_device})[TOKENS])

    def _run(
        self, program: str, pixels: Pixels, given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> tuple[list[NDArray[Any]], NDArray[Any], list[NDArray[np.float32]]]:
        """A frame's hidden states, its tokens and its scores."""
        seen: dict[str, list[NDArray[Any]]] = {HIDDEN: [], HIDDEN_OUT: [], SCORE: []}

        def look(_: str, outputs: Mapping[str, Tensor]) -> None:
            for name in outputs.keys() & seen.keys():
                seen[name].append(self._tower.backend.to_host(outputs[name]))

        inputs = {PIXEL_VALUES: pixels.astype(self._tower.dtype), **(given or {})}
        ran = self._runner.run(program, inputs, look)
        return [*seen[HIDDEN], *seen[HIDDEN_OUT]], ran.results[TOKENS], seen[SCORE]
