"""DART (arXiv 2502.11494): tokens that say least of what a few pivot tokens say already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import VisionSpec
from stc.runtime.evaluate.methods.pruning import (
    PruningMethod,
    checked_share,
    directions,
    kept_of,
)
from stc.shell.ranges import whole


@dataclass(frozen=True, kw_only=True)
class Dart(PruningMethod):
    """Keeps the pivots and, of each pivot in turn, the tokens most unlike it.

    keep: share of n. pivots: how many there are, at most what is kept. Published, it prunes inside
    the language model after its second layer, with four pivots among visual tokens and four among
    the question's, by the length of their keys. Here it prunes before the language model, where a
    stream has no question yet: all eight pivots are visual, by the length of the tokens. A frame
    is a unit of its own, so nothing had to be made causal.
    """

    name: str = "dart"
    about: str = "pivot tokens by length, and what is least like them"
    source: str = "2502.11494"
    keep: float = 0.25
    pivots: int = 8

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)
        whole(f"--methods {self.name}:pivots", self.pivots, least=1, most=1_000_000)

    def choosing(self, spec: VisionSpec) -> Callable[[NDArray[Any]], NDArray[np.int64]]:
        count = kept_of(self.keep, spec.pooled)
        return lambda tokens: unlike_pivots(tokens, count, min(self.pivots, count))


def unlike_pivots(tokens: NDArray[Any], count: int, pivots: int) -> NDArray[np.int64]:
    """Of tokens [n, D] the `pivots` longest by the sum of absolute values, and the rest of `count`
    by low cosine to each pivot in turn, among those not taken yet: int64 [count], ascending.

    Where the rest is no multiple of the pivots, the longest get one more.
    """
    lengths = np.abs(tokens.astype(np.float32)).sum(axis=1)
    chosen = np.argsort(-lengths, kind="stable")[:pivots]
    taken = np.zeros(len(tokens), bool)
    taken[chosen] = True
    direction = directions(tokens)
    each, more = divmod(count - pivots, pivots)
    for rank, pivot in enumerate(chosen):
        likeness = direction @ direction[pivot]
        likeness[taken] = np.inf
        taken[np.argsort(likeness, kind="stable")[: each + (rank < more)]] = True
    return np.flatnonzero(taken).astype(np.int64)
