"""One graph on two backends with equal inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
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
from stc.difference import ranked_means, selection_gap
from stc.engines.engine import Backend, Engine
from stc.engines.likeness import Compared, lowest_cosine, relative_l2
from stc.engines.plan import Sizes
from stc.manifest import Manifest
from stc.pruner import novelty
from stc.settings import SCORINGS

Arrays = dict[str, NDArray[Any]]
Calls = Iterable[tuple[Sizes, Mapping[str, NDArray[Any]]]]

NOVELTY_GAP = 1e-2
"""How far a pruner's choice may miss the most novel tokens: less is float16's rounding."""


class Both:
    """Runs graphs of `manifest` on `reference` and `candidate`, inputs in the graphs' own types.

    The candidate's engines stay loaded, the reference's one at a time.
    """

    def __init__(self, reference: Backend, candidate: Backend, manifest: Manifest) -> None:
        self.reference, self.candidate = reference, candidate
        self.manifest = manifest
        self._candidates: dict[str, Engine] = {}

    def run(self, graph: str, calls: Calls) -> Iterator[tuple[Compared, Arrays]]:
        """Each call's comparison, and the reference's outputs. Raises EngineError."""
        engines = ((self.reference, self.reference.load(graph)), self.engine(graph))
        for sizes, given in calls:
            inputs = {
                port.name: given[port.name].astype(port.dtype)
                for port in self.manifest.graphs[graph].inputs
            }
            sides = []
            for backend, engine in engines:
                tensors = {name: backend.to_device(array) for name, array in inputs.items()}
                outputs = engine(tensors)
                sides.append({name: backend.to_host(value) for name, value in outputs.items()})
            expected, got = sides
            yield self._compare(graph, sizes, inputs, expected, got), expected

    def engine(self, graph: str) -> tuple[Backend, Engine]:
        """The candidate and its engine of `graph`."""
        if graph not in self._candidates:
            self._candidates[graph] = self.candidate.load(graph)
        return self.candidate, self._candidates[graph]

    def _compare(
        self, graph: str, sizes: Sizes, inputs: Arrays, expected: Arrays, got: Arrays
    ) -> Compared:
        cosines, errors = {}, [0.0]
        for name, values in expected.items():
            if name in (INDICES, KEPT_INDICES):
                cosines[name] = 1.0 if _right_choice(graph, inputs, got[name]) else -1.0
            elif name == KEPT:
                # What was kept must be the tokens that were chosen, whichever those are.
                chosen = inputs[TOKENS][np.clip(got[KEPT_INDICES], 0, len(inputs[TOKENS]) - 1)]
                cosines[name] = lowest_cosine(chosen, got[name])
            else:
                if (graph, name) == (contracts.prune_graph("gaussian"), FRAME_MEAN):
                    values = ranked_means(inputs[TOKENS], got[name])
                cosines[name] = lowest_cosine(values, got[name])
                errors.append(relative_l2(values, got[name]))
        return Compared(graph, sizes, cosines, max(errors))


def _right_choice(graph: str, inputs: Arrays, chosen: NDArray[np.int64]) -> bool:
    """Whether `chosen` is ascending and as good as any choice of that many."""
    if graph == contracts.SELECT:
        rank, most = inputs[SCORE], 0.0
    else:
        scoring = next(one for one in SCORINGS if contracts.prune_graph(one) == graph)
        mean, count = inputs[HISTORY_MEAN], float(inputs[HISTORY_COUNT][0])
        rank, most = -novelty(scoring, inputs[TOKENS], mean, count)[0], NOVELTY_GAP
    inside = bool(((chosen >= 0) & (chosen < len(rank))).all())
    return inside and bool((np.diff(chosen) > 0).all()) and selection_gap(rank, chosen) <= most
