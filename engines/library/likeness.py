"""How like two backends' outputs must be, and how that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.engines.library.plan import Sizes

GRAPH_COSINE = 0.999
"""Lowest cosine of a token, of one graph on equal inputs."""

CHAIN_COSINE = 0.99
"""The same at the end of the whole chain, each backend on its own outputs."""

GRAPH_RELATIVE_L2 = 0.05
"""A cosine does not see a wrong length; this is about the error that GRAPH_COSINE allows."""


@dataclass(frozen=True)
class Compared:
    """One graph at one size: the lowest cosine of every output, -1 for NaN."""

    graph: str
    sizes: Sizes
    cosines: dict[str, float]
    relative_l2: float

    @property
    def passed(self) -> bool:
        """Whether every output is close."""
        return min(self.cosines.values()) >= GRAPH_COSINE and self.relative_l2 <= GRAPH_RELATIVE_L2


def lowest_cosine(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """The lowest cosine of a token's values in both; -1 where either is not finite.

    Tokens are the rows of [T, C], all heads of [H, T, d] together, or the whole of a vector.
    """
    a, b = (_by_token(array) for array in (expected, got))
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    both = lengths[0] * lengths[1]
    # Nothing is like nothing, and unlike anything else.
    alike = (lengths[0] == 0) & (lengths[1] == 0)
    cosines = np.where(both > 0, dots / np.where(both > 0, both, 1.0), alike.astype(np.float64))
    return float(cosines.min(initial=1.0))


def relative_l2(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """|got - expected| / |expected|; infinite where `got` is not finite or of another shape."""
    if expected.shape != got.shape:
        return np.inf
    a, b = expected.astype(np.float64), got.astype(np.float64)
    error = float(np.linalg.norm(b - a)) / max(float(np.linalg.norm(a)), 1e-30)
    return error if np.isfinite(error) else np.inf


def _by_token(array: NDArray[Any]) -> NDArray[np.float64]:
    wide = array.astype(np.float64)
    if wide.ndim == 3:
        wide = wide.transpose(1, 0, 2)
    return wide.reshape(1, -1) if wide.ndim == 1 else wide.reshape(len(wide), -1)
