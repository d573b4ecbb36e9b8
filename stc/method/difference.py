"""How far one tensor is from another: the three figures every comparison reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VARIANCE_TIE = 1e-2
"""Variances that differ by less, relatively, are a tie: less is float16's rounding."""


@dataclass(frozen=True)
class Difference:
    """max_abs: largest absolute difference. relative_l2: |got - expected| / |expected|.
    min_cosine: lowest cosine of a row (last axis) of one to the same row of the other."""

    max_abs: float
    relative_l2: float
    min_cosine: float


def difference(expected: NDArray[Any], got: NDArray[Any]) -> Difference:
    """The difference of `got` from `expected`, arrays of one shape, computed in float64.

    NaN or infinity anywhere makes every figure NaN, so that no comparison with a limit holds.
    """
    a, b = expected.astype(np.float64), got.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(np.nan, np.nan, np.nan)
    error = b - a
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    dots = (a * b).sum(axis=-1)
    # Nothing is like nothing, and unlike anything else.
    alike = (a == b).all(axis=-1)
    cosines = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1.0), alike)
    return Difference(
        max_abs=float(np.abs(error).max(initial=0.0)),
        relative_l2=float(np.linalg.norm(error)) / max(float(np.linalg.norm(a)), 1e-30),
        min_cosine=float(cosines.min(initial=1.0)),
    )


def selection_gap(rank: NDArray[Any], chosen: NDArray[np.int64]) -> float:
    """How far `chosen` is from the len(chosen) lowest of `rank`: 0 when it is a lowest set.

    Otherwise by how much the worst chosen exceeds the best that was left out, in units of rank:
    a gap below rounding is a tie, not an error. NaN when a rank is.
    """
    left = np.ones(len(rank), bool)
    left[chosen] = False
    if not left.any() or not len(chosen):
        return 0.0
    # Unlike `max`, it keeps NaN.
    return float(np.maximum(0.0, float(rank[chosen].max()) - float(rank[left].min())))


def ranked_means(tokens: NDArray[Any], got: NDArray[Any]) -> NDArray[np.float64]:
    """What `got` [P] should be: means of the channels of `tokens` [n, D] by rising variance.

    Channels whose variances are equal up to rounding may stand in either's place: each place has
    the mean, of those that may stand there, that is nearest to what `got` has.
    """
    values, found = tokens.astype(np.float64), got.astype(np.float64)
    variances, means = values.var(axis=0), values.mean(axis=0)
    ranked = np.sort(variances)[: len(found), None]
    slack = VARIANCE_TIE * ranked + 1e-6 * variances.mean()
    off = np.abs(means - found[:, None])
    may_stand = np.abs(variances - ranked) <= slack
    nearest: NDArray[np.float64] = means[np.where(may_stand, off, np.inf).argmin(axis=1)]
    return nearest
