"""DyCoke's temporal merging (arXiv 2411.15024): of three frames in four only what differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import VisionSpec
from stc.method.pruner import Array
from stc.runtime.evaluate.methods.pruning import (
    PruningMethod,
    checked_share,
    directions,
    kept_of,
    lowest,
)

GROUP = 4
"""Frames that are looked at together."""
COMPARED = {1: 0, 2: 0, 3: 2}
"""With which earlier frame of its group a frame is compared, whole tokens with whole tokens."""


@dataclass(frozen=True, kw_only=True)
class DyCoke(PruningMethod):
    """Of every group of four frames the first is kept whole, of the others a share.

    keep: share of n that is kept of frames 1, 2 and 3: the tokens least like those at the same
    place of frame 0, 0 and 2. On average (1 + 3 keep) / 4 of the tokens are kept, 47.5% by
    default: it is not matched to a budget. Every comparison looks back, so groups of a stream are
    those of a clip. The paper's second part, pruning the cache of keys and values anew for every
    decoded token, is not here.
    """

    name: str = "dycoke"
    about: str = "groups of four frames, of three what differs most; keeps 47.5%, more than others"
    source: str = "2411.15024"
    keep: float = 0.3

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)

    def choosing(self, spec: VisionSpec) -> GroupChooser:
        return GroupChooser(spec.pooled, kept_of(self.keep, spec.pooled))


class GroupChooser:
    """Keeps all n = `pooled` tokens of the first of every GROUP frames, `count` of the others."""

    def __init__(self, pooled: int, count: int) -> None:
        self._pooled, self._count = pooled, count
        self._index = 0
        self._earlier: dict[int, Array] = {}

    def __call__(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        place = self._index % GROUP
        self._index += 1
        direction = directions(tokens)
        if place in COMPARED.values():
            self._earlier[place] = direction
        if place not in COMPARED:
            return np.arange(self._pooled, dtype=np.int64)
        likeness = (direction * self._earlier[COMPARED[place]]).sum(axis=1)
        return lowest(likeness, self._count)
