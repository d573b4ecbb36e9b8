"""How sure a figure is: intervals, paired tests, distances of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0


def wilson(right: int, of: int) -> Interval | None:
    """The 95% score interval of a share of `right` in `of` (Wilson, 1927); None of nothing."""
    if not of:
        return None
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share, spread = right / of, z * z / of
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / of + spread / (4 * of)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(lost: int, won: int) -> float:
    """The two-sided exact p-value (McNemar, 1947) of `lost` and `won` among paired questions: how
    likely it is that they differ at least so much where losing and winning are equally likely."""
    flips = lost + won
    tail = sum(math.comb(flips, count) for count in range(min(lost, won) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**flips)))


def retention(right: Sequence[int], dense: Sequence[int]) -> tuple[float, Interval] | None:
    """Right answers over dense's, and the interval that 95% of paired resamples of scenes lie in.

    right, dense: right answers of each scene, of the same questions. Whole scenes are drawn, since
    the questions of one stand or fall together. None where dense has no right answer. Equal
    arguments give equal intervals.
    """
    if not sum(dense):
        return None
    ours, theirs = np.asarray(right, np.float64), np.asarray(dense, np.float64)
    count = len(theirs)
    draws = np.random.default_rng(SEED).multinomial(count, [1 / count] * count, RESAMPLES)
    below = draws @ theirs
    ratios = (draws @ ours)[below > 0] / below[below > 0]
    tails = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tails, 1 - tails])
    return sum(right) / sum(dense), (float(low), float(high))


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """log softmax of `logits` [..., V], computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    out: NDArray[np.float32] = (wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))).astype(
        np.float32
    )
    return out


def divergence(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """KL(expected || got) in nats, of two rows of log-probabilities [V]; never below 0."""
    wide = expected.astype(np.float64)
    return max(0.0, float((np.exp(wide) * (wide - got)).sum()))


def mean(values: Sequence[float]) -> float | None:
    """Their mean; None of none."""
    return float(np.mean(values)) if len(values) else None


def quantile(values: Sequence[float], share: float) -> float | None:
    """What `share` of the values lie below; None of none."""
    return float(np.quantile(values, share)) if len(values) else None
