"""Two backends in step: ONNX Runtime leads, the oracle takes its tokens and judges the choice.

Where two tokens score alike up to rounding, either may be taken; what is compared afterwards is
arithmetic and not luck.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.engine import Engine, Tensor
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.export.towers.part import VisionWeights
from stc.method import pruner
from stc.method.difference import selection_gap
from stc.method.graphs import (
    INDICES,
    KEPT_INDICES,
    PRUNE_CONTRACT,
    SELECT,
    SELECT_CONTRACT,
    prune_graph,
)
from stc.settings import SCORINGS, Scoring
from tests.oracle.backend import OracleBackend, OracleEngine
from tests.vision_cases import numpy_weights

Array = NDArray[Any]


class Leading(OnnxRuntimeBackend):
    """ONNX Runtime, and in `choices` the tokens its graphs chose, in order."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.choices: deque[Array] = deque()

    def load(self, graph: str) -> Engine:
        return _LeadingEngine(super().load(graph), self)


class _LeadingEngine:
    def __init__(self, engine: Engine, leading: Leading) -> None:
        self.name = engine.name
        self._engine = engine
        self._leading = leading

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        results = self._engine(inputs, outputs)
        for name in (INDICES, KEPT_INDICES):
            if name in results:
                self._leading.choices.append(self._leading.to_host(results[name]))
        return results


def vary_alike(tokens: Array) -> bool:
    """Whether two of the channels of `tokens` [n, D] that vary least vary alike, up to rounding."""
    wide = tokens.astype(np.float64)
    steps = np.diff(np.sort(wide.var(axis=0)))[: tokens.shape[1] // 2]
    return bool(steps.min(initial=np.inf) <= 1e-5 * np.square(wide).mean())


class Following(OracleBackend):
    """The oracle of `weights`, taking the `choices`; `gaps` says by how much each missed the best
    scores."""

    def __init__(self, weights: VisionWeights, choices: deque[Array]) -> None:
        super().__init__(*numpy_weights(weights))
        self.choices = choices
        self.gaps: list[float] = []
        self.tied = False
        """Whether a pruner ranked channels that vary alike: either order is right, and what is
        scored and remembered from then on is another."""

    def load(self, graph: str) -> Engine:
        if graph == SELECT:
            return OracleEngine(graph, SELECT_CONTRACT, self._select)
        for scoring in SCORINGS:
            if graph == prune_graph(scoring):
                return OracleEngine(graph, PRUNE_CONTRACT, self._pruning(scoring))
        return super().load(graph)

    def _taken(self, rank: Array, count: Array) -> Array:
        chosen = self.choices.popleft()
        assert len(chosen) == count[0]
        assert (np.diff(chosen) > 0).all()
        self.gaps.append(selection_gap(rank, chosen))
        return chosen

    def _select(self, score: Array, count: Array) -> tuple[Array, ...]:
        return (self._taken(score, count),)

    def _pruning(self, scoring: Scoring) -> Callable[..., tuple[Array, ...]]:
        def prune(tokens: Array, mean: Array, frames: Array, count: Array) -> tuple[Array, ...]:
            self.tied |= scoring != "dual-anchor" and vary_alike(tokens)
            scores, frame_mean = pruner.novelty(scoring, tokens, mean, float(frames[0]))
            kept = self._taken(-scores, count)
            return tokens[kept], kept, frame_mean

        return prune
