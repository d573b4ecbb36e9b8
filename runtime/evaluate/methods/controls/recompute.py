"""STC-Cacher with tokens drawn at random instead of by their keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.engines.eager import EagerRunner
from stc.method.family import FrameKind, indices_of, macs, stream_programs
from stc.method.graphs import PIXEL_VALUES, TOKENS
from stc.runtime.evaluate.method import CONTROL, Encoded, Pixels, Towers
from stc.runtime.evaluate.methods.cacher_like import CacherLike
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from stc.shell.ranges import MAX_COUNT, whole


@dataclass(frozen=True, kw_only=True)
class RandomRecompute(CacherLike):
    """As preset `cacher`, but every block of a reuse frame recomputes random tokens of its own.

    Equal seeds draw alike in every stream. Tokens that lie nowhere, such as a class token, are
    recomputed before all others, as STC-Cacher does.
    """

    name: str = "random-recompute"
    about: str = "STC-Cacher, the recomputed tokens drawn at random"
    source: str = CONTROL
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(f"--methods {self.name}:seed", self.seed, least=0, most=MAX_COUNT)

    def open(self, towers: Towers) -> RandomRecomputeEncoder:
        return RandomRecomputeEncoder(towers.vision, self.cacher(), self.seed)


class RandomRecomputeEncoder:
    """A stream of `settings` through `tower` whose reuse frames are told what to recompute."""

    def __init__(self, tower: VisionTower, settings: Settings, seed: int) -> None:
        self._tower, self._settings = tower, settings
        self._random = np.random.default_rng(seed)
        programs = [
            program.given(program.choices)
            for program in stream_programs(tower.spec, tower.precision, settings)
        ]
        self._runner = EagerRunner(tower.backend, programs, tower.engine)
        self._macs = {program.name: macs(tower.spec, program) for program in programs}
        self._index = 0

    def push(self, pixels: Pixels) -> Encoded:
        spec = self._tower.spec
        kind: FrameKind = "reference" if self._settings.is_reference(self._index) else "reuse"
        self._index += 1
        inputs = {PIXEL_VALUES: pixels.astype(self._tower.dtype, copy=False)}
        drawn = {}
        if kind == "reuse":
            drawn = {indices_of(block): self._drawn() for block in range(spec.blocks)}
        tokens = self._runner.run(kind, {**inputs, **drawn}).results[TOKENS]
        everything = np.arange(spec.pooled, dtype=np.int64)
        return Encoded(tokens, everything, tokens, drawn.get(indices_of(0)), self._macs[kind])

    def _drawn(self) -> NDArray[np.int64]:
        """What one block recomputes, ascending."""
        grid = self._tower.spec.grid
        count = self._settings.recomputed(self._tower.spec.tokens)
        always = np.arange(min(grid.prefix_tokens, count), dtype=np.int64)
        patches = self._random.permutation(grid.patches)[: count - len(always)]
        return np.concatenate((always, grid.prefix_tokens + np.sort(patches))).astype(np.int64)
