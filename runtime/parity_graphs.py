"""Graph by graph: every graph of the bundle and PyTorch compute the same from equal inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import (
    COUNT,
    HIDDEN,
    HIDDEN_OUT,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT,
    KEPT_INDICES,
    KEY,
    PIXEL_VALUES,
    REF_KEY,
    REF_RESIDUAL,
    REF_VALUE,
    RESIDUAL,
    SCORE,
    TOKENS,
    VALUE,
)
from stc.difference import ranked_means, selection_gap
from stc.engines.engine import Engine
from stc.pruner import novelty
from stc.runtime.parity import ParityReport
from stc.runtime.tower import VisionTower
from stc.settings import SCORINGS, Scoring, Settings

Arrays = dict[str, NDArray[Any]]
GraphRun = Callable[[str, Mapping[str, NDArray[Any]]], Arrays]
"""Runs a graph on the other side, PyTorch's or ONNX Runtime's, on float32 arrays."""


def compare_graphs(
    tower: VisionTower,
    run_graph: GraphRun,
    frames: tuple[NDArray[np.float32], NDArray[np.float32]],
    settings: Settings,
    report: ParityReport,
    tick: Callable[[], None],
) -> None:
    """Every graph has its rows in `report`, on a reference frame and a reuse frame.

    `frames` are the pixel_values of both; the other side's outputs are the next graph's inputs.
    """
    both = _Both(tower, run_graph, report)
    spec = tower.spec
    first, second = (both.run(tower.embed, {PIXEL_VALUES: pixels})[HIDDEN] for pixels in frames)
    tick()
    count = np.array([settings.recomputed(spec.tokens)], np.int64)
    heads = np.zeros((spec.heads, spec.tokens, spec.head_width), np.float32)
    # A reference key of zeros has no direction, so no cosine that could be compared.
    blank: Arrays = {REF_KEY: heads + 1, REF_VALUE: heads, REF_RESIDUAL: np.zeros_like(first)}
    everything = np.arange(spec.tokens, dtype=np.int64)
    for keys, update in zip(tower.keys, tower.updates, strict=True):
        fresh = both.run(keys, {HIDDEN: first, REF_KEY: blank[REF_KEY]})
        scored = both.run(keys, {HIDDEN: second, REF_KEY: fresh[KEY]})
        tick()
        indices = both.select(scored[SCORE], count)
        full = both.run(
            update,
            {
                HIDDEN: first,
                KEY: fresh[KEY],
                REF_VALUE: blank[REF_VALUE],
                REF_RESIDUAL: blank[REF_RESIDUAL],
                INDICES: everything,
            },
        )
        part = both.run(
            update,
            {
                HIDDEN: second,
                KEY: scored[KEY],
                REF_VALUE: full[VALUE],
                REF_RESIDUAL: full[RESIDUAL],
                INDICES: indices,
            },
        )
        first, second = full[HIDDEN_OUT], part[HIDDEN_OUT]
        tick()
    tokens = [both.run(tower.project, {HIDDEN: hidden})[TOKENS] for hidden in (first, second)]
    tick()
    for scoring in SCORINGS:
        both.prune(scoring, tokens, settings.kept(spec.pooled))
        tick()


class _Both:
    """Runs a graph in the bundle and on the other side and reports the difference."""

    def __init__(self, tower: VisionTower, run_graph: GraphRun, report: ParityReport) -> None:
        self._tower = tower
        self._run_graph = run_graph
        self._report = report

    def run(self, engine: Engine, inputs: Arrays) -> Arrays:
        """The other side's outputs, compared with the engine's."""
        expected = self._run_graph(engine.name, inputs)
        for name, got in self._bundle(engine, inputs).items():
            self._report.graph(engine.name, name, expected[name], got)
        return expected

    def select(self, score: NDArray[np.float32], count: NDArray[np.int64]) -> NDArray[np.int64]:
        """The bundle's choice, judged by the other side's scores."""
        engine = self._tower.select
        indices: NDArray[np.int64] = self._bundle(engine, {SCORE: score, COUNT: count})[INDICES]
        self._report.selection(engine.name, INDICES, selection_gap(score, indices))
        return indices

    def prune(self, scoring: Scoring, frames: list[NDArray[Any]], kept: int) -> None:
        """Two frames in a row: without history, and with the first as history."""
        width = contracts.memory_width(scoring, frames[0].shape[1])
        mean, engine = np.zeros(width, np.float32), self._tower.prune(scoring)
        for number, tokens in enumerate(frames):
            inputs: Arrays = {
                TOKENS: tokens,
                HISTORY_MEAN: mean,
                HISTORY_COUNT: np.array([number], np.float32),
                COUNT: np.array([kept], np.int64),
            }
            expected = self._run_graph(engine.name, inputs)
            got = self._bundle(engine, inputs)
            rank = -novelty(scoring, tokens, mean, float(number))[0]
            gap = selection_gap(rank, got[KEPT_INDICES])
            self._report.selection(engine.name, KEPT_INDICES, gap)
            self._report.graph(engine.name, KEPT, tokens[got[KEPT_INDICES]], got[KEPT])
            name = contracts.FRAME_MEAN
            mean = expected[name]
            if scoring == "gaussian":
                mean = ranked_means(tokens, got[name]).astype(np.float32)
            self._report.graph(engine.name, name, mean, got[name])

    def _bundle(self, engine: Engine, inputs: Arrays) -> Arrays:
        backend, dtypes = self._tower.backend, self._tower.dtype
        contract = contracts.vision_graphs(self._tower.spec.blocks)[engine.name]
        tensors = {
            port.name: backend.to_device(
                inputs[port.name].astype(dtypes) if port.dtype == "network" else inputs[port.name]
            )
            for port in contract.inputs
        }
        return {name: backend.to_host(value) for name, value in engine(tensors).items()}
