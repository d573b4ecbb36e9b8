"""How the outputs of the `stc` family's graphs are judged, whoever computed them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT,
    KEPT_INDICES,
    SCORE,
    TOKENS,
)
from stc.method.difference import ranked_means, selection_gap
from stc.method.graphs import prune_graph
from stc.method.pruner import novelty
from stc.program import Arrays
from stc.settings import SCORINGS


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
        elif name in (INDICES, KEPT_INDICES) and np.array_equal(values, found):
            yield Judged(name, values, found, 0.0)
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
