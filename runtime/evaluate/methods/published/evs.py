"""Efficient Video Sampling (arXiv 2510.14624): what equals its place
in the last frame is dropped."""

from __future__ import annotations

from collections import deque
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
from stc.shell.ranges import real, whole

STILL = 1e-6
"""A cosine this near 1 is rounding: the token did not change."""


@dataclass(frozen=True, kw_only=True)
class Evs(PruningMethod):
    """Keeps the tokens that changed most since the last frame, as many as match a budget.

    keep: share of all tokens of the last `window` frames that lies over the threshold. A token's
    change is 1 minus its cosine to the token at the same place of the frame before, as servers
    compute it (vLLM); the paper compares pixels of patches. Published, one threshold holds for a
    whole clip, its percentile of change; here it is that of the last `window` frames, the current
    one included, so a frame that changes more than those before keeps more. The first frame is
    kept whole, as published, on top of the budget; what did not change at all is never kept.
    """

    name: str = "evs"
    about: str = "what changed since the last frame, a share of the tokens of the last frames"
    source: str = "2510.14624"
    keep: float = 0.25
    window: int = 32

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)
        whole(f"--methods {self.name}:window", self.window, least=1, most=10_000)

    def choosing(self, spec: VisionSpec) -> ChangeChooser:
        return ChangeChooser(RecentShare(self.keep, self.window))


@dataclass(frozen=True, kw_only=True)
class EvsThreshold(PruningMethod):
    """Keeps the tokens that changed by more than `threshold` since the last frame.

    threshold: of the change that `Evs` describes, 0 to 2. How many tokens that keeps is up to the
    video: it is not matched to a budget.
    """

    name: str = "evs-threshold"
    about: str = "what changed since the last frame by more than a threshold; no budget"
    source: str = "2510.14624"
    threshold: float = 0.1

    def __post_init__(self) -> None:
        real(f"--methods {self.name}:threshold", self.threshold, "0 to 2", least=0.0, most=2.0)

    def choosing(self, spec: VisionSpec) -> ChangeChooser:
        return ChangeChooser(lambda _: self.threshold)


class RecentShare:
    """The change over which a share `keep` of the tokens of the last `window` frames lies."""

    def __init__(self, keep: float, window: int) -> None:
        self._keep = keep
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=window)

    def __call__(self, change: NDArray[np.float32]) -> float:
        self._recent.append(change)
        changes = np.sort(np.concatenate(self._recent))
        below = len(changes) - kept_of(self._keep, len(changes))
        return float(changes[below - 1]) if below else 0.0


class ChangeChooser:
    """Keeps the first frame, then what changed by more than `threshold` says of the change [n]."""

    def __init__(self, threshold: Callable[[NDArray[np.float32]], float]) -> None:
        self._threshold = threshold
        self._last: NDArray[np.float32] | None = None

    def __call__(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        direction = directions(tokens)
        last, self._last = self._last, direction
        if last is None:
            return np.arange(len(tokens), dtype=np.int64)
        change = 1 - (direction * last).sum(axis=1)
        return np.flatnonzero(change > max(self._threshold(change), STILL)).astype(np.int64)
