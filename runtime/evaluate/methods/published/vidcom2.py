"""VidCom2 (arXiv 2505.14454): frames unlike the video so far get more tokens, and of each frame
what is unlike the video and the frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import VisionSpec
from stc.method.pruner import LENGTH_EPS, Array, density
from stc.runtime.evaluate.methods.pruning import (
    PruningMethod,
    checked_share,
    lowest,
)

TEMPERATURE = 0.01
"""Of the softmax over frames (released code)."""
EVENED_OUT = 4.0
"""Frames over which what a frame took beyond its share is given back."""


@dataclass(frozen=True, kw_only=True)
class VidCom2(PruningMethod):
    """Budgets by a frame's uniqueness, tokens by their distance from the video's and their frame's
    mean.

    keep: share of all tokens. Published, it sees a whole clip: the half of the channels that vary
    least, the mean token and the softmax of uniqueness are taken over all of its frames. Here they
    are taken over the frames so far, in memory that does not grow: sums of the channels, of the
    tokens at the length that each frame's own channels gave them, and of the exponentials of
    uniqueness. The published budgets of a clip sum to the clip's budget; those of a stream would
    not, as each is dealt out before the next frame is seen, so what a frame took beyond its share,
    or left, is evened out over the next four or so.
    """

    name: str = "vidcom2"
    about: str = "more tokens for frames unlike the video, and of each what is unlike the rest"
    source: str = "2505.14454"
    keep: float = 0.25

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)

    def choosing(self, spec: VisionSpec) -> UniqueChooser:
        return UniqueChooser(self.keep, spec.pooled)


class UniqueChooser:
    """See VidCom2; n = `pooled`, of which a share `keep` is the budget of an average frame."""

    def __init__(self, keep: float, pooled: int) -> None:
        self._video = VideoSoFar()
        self._budgets = StreamBudgets(keep * pooled, pooled)

    def __call__(self, tokens: NDArray[Any]) -> NDArray[np.int64]:
        to_video, to_frame = self._video.densities(tokens)
        return lowest(to_video + to_frame, self._budgets.next(-float(to_video.mean())))


class VideoSoFar:
    """Sums over the frames so far: what their channels vary by, and what their tokens are like."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sum: Array = np.zeros(())
        self._squares: Array = np.zeros(())
        self._units: Array = np.zeros(())

    def densities(self, tokens: NDArray[Any]) -> tuple[Array, Array]:
        """How like the mean of the video so far, this frame among it, and of this frame each of
        the tokens [n, D] is: float64 [n] each. Low is unlike."""
        x = tokens.astype(np.float64)
        self._tokens += len(x)
        self._sum = self._sum + x.sum(axis=0)
        self._squares = self._squares + (x * x).sum(axis=0)
        variance = self._squares / self._tokens - (self._sum / self._tokens) ** 2
        channels = np.argsort(variance, kind="stable")[: x.shape[1] // 2]
        length = np.sqrt((x[:, channels] ** 2).sum(axis=1, keepdims=True))
        scaled = x / np.maximum(length, LENGTH_EPS)
        self._units = self._units + scaled.sum(axis=0)
        unit = scaled[:, channels]
        return (
            density(unit, self._units[channels] / self._tokens),
            density(unit, unit.mean(axis=0)),
        )


def frame_budgets(uniqueness: NDArray[np.float64], base: float) -> NDArray[np.float64]:
    """The published shares of a clip's frames, by their uniqueness [frames]: `base` on average."""
    raised = np.exp((uniqueness - uniqueness.max()) / TEMPERATURE)
    share = raised / raised.sum()
    budgets: NDArray[np.float64] = base * (1 + share - share.mean())
    return budgets


class StreamBudgets:
    """Budgets of the frames of a stream, of `base` of `pooled` = n tokens on average.

    Each is what `frame_budgets` deals to the last of the frames so far, less a part of what the
    earlier ones took beyond `base` each.
    """

    def __init__(self, base: float, pooled: int) -> None:
        self._base, self._pooled = base, pooled
        self._owed = 0.0
        self._frames = 0
        self._log_sum = -np.inf

    def next(self, uniqueness: float) -> int:
        """The tokens of the next frame, 1 to n."""
        self._frames += 1
        raised = uniqueness / TEMPERATURE
        self._log_sum = float(np.logaddexp(self._log_sum, raised))
        share = float(np.exp(raised - self._log_sum))
        wanted = self._base * (1 + share - 1 / self._frames) - self._owed / EVENED_OUT
        budget = min(max(1, round(wanted)), self._pooled)
        self._owed += budget - self._base
        return budget
