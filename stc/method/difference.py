"""How far one tensor is from another, and how far a whole model may be from transformers' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stc.manifest import Precision
from stc.method.graphs import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT,
    KEPT_INDICES,
    PLACES,
    SCORE,
    TOKENS,
    prune_graph,
)
from stc.method.pruner import novelty
from stc.program import Arrays
from stc.settings import SCORINGS

VARIANCE_TIE = 1e-2
"""Variances that differ by less, relatively, are a tie: less is float16's rounding."""
TEXT = 8
"""Text tokens before the video, and as many after it, where there is no prompt."""
ANSWER = 8
"""Most text tokens of the greedy answer."""
PIXEL = 1e-5
"""Largest allowed difference of a pixel value: both sides do the same arithmetic."""
RELATIVE_L2: dict[Precision, float] = {"fp32": 1e-5, "fp16": 5e-2}
"""Largest allowed |bundle - transformers| / |transformers| at the end of the whole chain."""
ROUNDING: dict[Precision, float] = {"fp32": 2.0**-23, "fp16": 2.0**-10}
"""Spacing of numbers of a precision, relative to them."""
ROUNDINGS = 64.0
"""Allowed where RELATIVE_L2 is not enough, as many roundings of the model's inputs: they are
rounded anew in every layer of a deep network, and a trained one can magnify that."""


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
    # Next to nothing is like nothing, and unlike anything else.
    alike = np.linalg.norm(error, axis=-1) <= 1e-6 * np.linalg.norm(a, axis=-1).max(initial=0.0)
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


def whole_limit(
    precision: Precision,
    expected: NDArray[Any],
    got: NDArray[Any],
    moves: Callable[[float], float],
) -> float:
    """The largest relative L2 by which `got` may differ from `expected`.

    `moves` tells by what `expected` moves when the model's inputs are rounded otherwise, given the
    spacing of numbers. It is asked only where that decides.
    """
    limit = RELATIVE_L2[precision]
    if expected.shape != got.shape or difference(expected, got).relative_l2 <= limit:
        return limit
    return max(limit, ROUNDINGS * moves(ROUNDING[precision]))


def pixels_apart(expected: NDArray[np.float32], got: NDArray[np.floating]) -> float:
    """Largest difference of a pixel value; infinite where the pictures have other sizes."""
    if expected.shape != got.shape:
        return float("inf")
    return float(np.abs(expected - got).max())


def rounded_otherwise(array: NDArray[Any], rounding: float) -> NDArray[Any]:
    """`array` with every number moved by up to half of `rounding`, relative to it."""
    ways = np.random.default_rng(0).random(array.shape) - 0.5
    moved: NDArray[Any] = (array * (1.0 + rounding * ways)).astype(array.dtype)
    return moved


class Judged(NamedTuple):
    """One output of a graph, ready to be judged: two arrays to compare, or a choice and its gap.

    gap: by how much a choice misses the best one, in units of what it is ranked by (infinite for
    indices that are none); None for arrays.
    """

    output: str
    expected: NDArray[Any]
    got: NDArray[Any]
    gap: float | None = None


def judged(graph: str, inputs: Arrays, expected: Arrays, got: Arrays) -> Iterator[Judged]:
    """The outputs of `graph` for equal `inputs`, as they may be compared.

    Choices that differ are judged by what they were ranked by, since equal ranks may fall either
    way; what was kept by what was chosen; a mean of ranked channels with ties resolved in its
    favour.
    """
    for name, values in expected.items():
        found = got[name]
        if values.shape != found.shape:
            yield Judged(name, values, found)
        elif name in (INDICES, KEPT_INDICES, PLACES) and np.array_equal(values, found):
            yield Judged(name, values, found, 0.0)
        elif name == PLACES:
            yield Judged(name, values, found, float("inf"))
        elif name == INDICES:
            yield Judged(name, values, found, _gap(inputs[SCORE], found))
        elif name == KEPT_INDICES:
            scoring = next(one for one in SCORINGS if prune_graph(one) == graph)
            seen = float(inputs[HISTORY_COUNT][0])
            rank = -novelty(scoring, inputs[TOKENS], inputs[HISTORY_MEAN], seen)[0]
            yield Judged(name, values, found, _gap(rank, found))
        elif name == KEPT:
            tokens, chosen = inputs[TOKENS], got[KEPT_INDICES]
            yield Judged(name, tokens[np.clip(chosen, 0, len(tokens) - 1)], found)
        elif (graph, name) == (prune_graph("gaussian"), FRAME_MEAN):
            yield Judged(name, ranked_means(inputs[TOKENS], found), found)
        else:
            yield Judged(name, values, found)


def _gap(rank: NDArray[Any], chosen: NDArray[np.int64]) -> float:
    inside = bool(((chosen >= 0) & (chosen < len(rank))).all())
    ascending = bool((np.diff(chosen) > 0).all())
    return selection_gap(rank, chosen) if inside and ascending else float("inf")
