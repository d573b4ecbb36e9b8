"""Tokens kept without a look at them: at random, or on a regular grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import Grid, VisionSpec
from stc.runtime.evaluate.method import CONTROL, Chooser
from stc.runtime.evaluate.methods.pruning import PruningMethod, checked_share, kept_of
from stc.shell.ranges import MAX_COUNT, whole


@dataclass(frozen=True, kw_only=True)
class RandomKeep(PruningMethod):
    """keep: share of n, drawn anew for every frame; equal seeds draw alike in every stream."""

    name: str = "random-keep"
    about: str = "random tokens, others in every frame"
    source: str = CONTROL
    keep: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)
        whole(f"--methods {self.name}:seed", self.seed, least=0, most=MAX_COUNT)

    def choosing(self, spec: VisionSpec) -> Chooser:
        count, random = kept_of(self.keep, spec.pooled), np.random.default_rng(self.seed)

        def choose(_: NDArray[Any]) -> NDArray[np.int64]:
            return np.sort(random.permutation(spec.pooled)[:count]).astype(np.int64)

        return choose


@dataclass(frozen=True, kw_only=True)
class UniformKeep(PruningMethod):
    """keep: share of n; the largest grid of that many tokens, evenly over rows and columns."""

    name: str = "uniform-keep"
    about: str = "a regular grid of tokens, the same in every frame"
    source: str = CONTROL
    keep: float = 0.25

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)

    def choosing(self, spec: VisionSpec) -> Chooser:
        places = sub_grid(spec.grid, kept_of(self.keep, spec.pooled))
        return lambda _: places


def sub_grid(grid: Grid, count: int) -> NDArray[np.int64]:
    """Places of a regular grid of at most `count` pooled tokens, int64, ascending.

    It has as many as possible, and of grids of as many the one that thins rows and columns most
    alike.
    """
    rows, columns = grid.pooled_rows, grid.pooled_columns
    sizes = [(down, min(count // down, columns)) for down in range(1, min(rows, count) + 1)]
    down, across = max(
        sizes, key=lambda size: (size[0] * size[1], -abs(size[0] / rows - size[1] / columns))
    )
    row, column = _evenly(rows, down), _evenly(columns, across)
    return (row[:, None] * columns + column).reshape(-1)


def _evenly(length: int, count: int) -> NDArray[np.int64]:
    """The middles of `count` equal parts of `length` places."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * length) // (2 * count)
