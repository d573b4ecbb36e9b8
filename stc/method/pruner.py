"""STC-Pruner in numpy (arXiv 2512.00891, section 3.3): how novel tokens are, by every scoring.

`PrunerMemory` is what the host remembers between frames, in bounded memory however long the stream.

Knows nothing of ONNX, engines or streams.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.method.graphs import memory_width
from stc.settings import Scoring

Array = NDArray[Any]
Mean = NDArray[np.float32]

ALPHA = 0.5
"""Weight of dual-anchor's temporal anchor; the paper finds no better one."""

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Kernel widths of the gaussian scorings (released code)."""

LENGTH_EPS = 1e-12


class PrunerMemory:
    """The mean of earlier frames' means, as the prune graph reads it.

    mean: float32 [P]; zeros before the first push. A push replaces the array and never writes
        to one given out.
    count: how many frames it is the mean of.

    dual-anchor remembers the last `window` = W frames and sums them anew at every push: a sum
    that adds the new frame and subtracts the oldest would gather rounding errors for ever. The
    gaussian scorings remember all frames, as one float64 sum. `width` is D.
    """

    def __init__(self, scoring: Scoring, width: int, window: int) -> None:
        self.mean: Mean = np.zeros(memory_width(scoring, width), np.float32)
        self.count = 0.0
        self._sum = np.zeros(self.mean.shape, np.float64)
        self._recent: deque[Mean] | None = None
        if scoring == "dual-anchor":
            self._recent = deque(maxlen=window)

    def push(self, frame_mean: Mean) -> None:
        """The frame whose mean [P] this is now belongs to the past.

        Raises ValueError for another shape.
        """
        if frame_mean.shape != self.mean.shape:
            raise ValueError(f"frame mean {frame_mean.shape}, memory {self.mean.shape}")
        if self._recent is None:
            self._sum += frame_mean
            self.count += 1.0
        else:
            self._recent.append(frame_mean.astype(np.float32))
            self._sum[:] = 0.0
            for mean in self._recent:
                self._sum += mean
            self.count = float(len(self._recent))
        self.mean = (self._sum / self.count).astype(np.float32)


def novelty(
    scoring: Scoring, tokens: Array, history_mean: Array, history_count: float
) -> tuple[Array, Mean]:
    """How unlike the anchors each token is, high = keep: novelty [n], frame_mean float32 [P]."""
    x = tokens.astype(np.promote_types(tokens.dtype, np.float32))
    history = (
        history_mean.astype(x.dtype) if history_count else np.zeros_like(history_mean, x.dtype)
    )
    if scoring == "dual-anchor":
        scores, frame_mean = _dual_anchor(x, history, history_count)
    else:
        scores, frame_mean = _gaussian(x, history, history_count, fixed=scoring == "gaussian-fixed")
    return scores, frame_mean.astype(np.float32)


def _dual_anchor(x: Array, history_mean: Array, history_count: float) -> tuple[Array, Array]:
    spatial = x.mean(axis=0)
    # The first frame has no past: its own mean stands in for it.
    temporal = history_mean if history_count else spatial
    direction = unit(x)
    # Not a matrix product: BLAS rounds equal rows differently by their place, and ties must hold.
    to_temporal = 1 - (direction * unit(temporal)).sum(axis=1)
    to_spatial = 1 - (direction * unit(spatial)).sum(axis=1)
    return ALPHA * to_temporal + (1 - ALPHA) * to_spatial, spatial


def _gaussian(
    x: Array, history_mean: Array, history_count: float, *, fixed: bool
) -> tuple[Array, Array]:
    """Minus the kernel density at the frame's centre and at the mean of history and frame.

    Both look at the half of the channels that varies least over this frame's tokens. The released
    code stores the history by rank in that order, so that one place of its mean holds different
    channels of different frames; `fixed` stores all channels and picks this frame's afterwards.
    """
    channels = np.argsort(x.var(axis=0), kind="stable")[: x.shape[1] // 2]
    subset = x[:, channels]
    frame_mean = x.mean(axis=0) if fixed else subset.mean(axis=0)
    anchor = (history_mean * history_count + frame_mean) / (history_count + 1)
    direction = unit(subset)
    temporal = unit(anchor[channels] if fixed else anchor)
    return -density(direction, direction.mean(axis=0)) - density(direction, temporal), frame_mean


def density(tokens: Array, anchor: Array) -> Array:
    """Sum over BANDWIDTHS of exp(-|a - b|^2 / (2 bandwidth)): [n, P], [P] -> [n]."""
    squared = ((tokens - anchor) ** 2).sum(axis=1)
    total: Array = np.stack([np.exp(-squared / (2 * width)) for width in BANDWIDTHS]).sum(axis=0)
    return total


def unit(x: Array) -> Array:
    """`x` at length 1 along its last axis."""
    length = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    scaled: Array = x / np.maximum(length, LENGTH_EPS)
    return scaled
