"""One ladder: golden files <- numpy oracle <- PyTorch <- ONNX Runtime, fp32 and fp16.

The rungs stand in RUNGS, what each may differ by in TOLERANCES.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc import contracts, pruner
from stc.contracts import (
    COUNT,
    HIDDEN,
    HIDDEN_OUT,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT_INDICES,
    PRUNE_CONTRACT,
    SCORE,
    TOKENS,
)
from stc.difference import difference, selection_gap
from stc.engines.engine import Backend, Engine, Tensor
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeEngine
from stc.engines.oracle_backend import OracleBackend, OracleEngine
from stc.export.checkpoint import VisionWeights
from stc.export.graph import FreeAxis
from stc.export.graphs import GraphWriter
from stc.export.modules import Prune
from stc.export.reference import TorchVision
from stc.export.torch_graphs import TorchGraphs
from stc.export.weights_file import WeightsFile
from stc.pruner import PrunerMemory
from stc.runtime.frame import Frame
from stc.runtime.parity import ParityReport
from stc.runtime.parity_graphs import compare_graphs
from stc.runtime.parity_streams import compare_streams
from stc.runtime.preprocess import Preprocessor
from stc.runtime.session import StreamSession
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import KEEP_ALL, SCORINGS, SELECTIONS, Scoring, Settings
from tests.vision_cases import (
    DATA,
    GOLDEN,
    PRECISIONS,
    WEIGHTS,
    Exported,
    made_up,
    moving_frames,
    numpy_weights,
)

Array = NDArray[Any]
Exporting = Callable[[str], Exported]

FULL = [case for case, precision in PRECISIONS.items() if precision == "fp32"]
PRUNER_GOLDEN = sorted(path.stem for path in DATA.glob("pruner_*.npz"))


@dataclass(frozen=True)
class Tolerance:
    """golden_l2: of every hidden state of a golden file, relative L2; indices are equal.
    oracle_l2: of kept tokens, against the oracle that takes the same tokens, relative L2.
    score_gap: by which a choice may miss the best scores, as the oracle computes them."""

    golden_l2: float
    oracle_l2: float
    score_gap: float


TOLERANCES = {
    "oracle": Tolerance(1e-4, 0.0, 0.0),
    "torch": Tolerance(1e-4, 1e-5, 1e-5),
    "transformers": Tolerance(1e-4, 1e-5, 1e-5),
    "onnxruntime": Tolerance(1e-4, 1e-5, 1e-5),
}
"""What each rung may differ by. fp16's limits are `stc-parity`'s own (`stc.runtime.parity`)."""


@dataclass(frozen=True)
class Passed:
    """A frame's way through a tower: L + 1 hidden states, each block's indices, tokens [n, D]."""

    hidden_states: list[Array]
    indices: list[Array]
    tokens: Array


class TorchBackend(OracleBackend):
    """The modules that are exported, run by PyTorch."""

    name = "torch"

    def __init__(self, weights: VisionWeights) -> None:
        super().__init__(*numpy_weights(weights))
        self._run = TorchGraphs(weights)
        self._graph_contracts = contracts.vision_graphs(weights.spec.blocks)

    def load(self, graph: str) -> Engine:
        contract = self._graph_contracts[graph]
        names = [port.name for port in contract.inputs]

        def run(*arrays: Array) -> tuple[Array, ...]:
            outputs = self._run(graph, dict(zip(names, arrays, strict=True)))
            return tuple(outputs[port.name] for port in contract.outputs)

        return OracleEngine(graph, contract, run)


def through_graphs(
    tower: VisionTower, frames: Iterable[Array], settings: Settings
) -> Iterator[Passed]:
    """The frames through the graphs of `tower`."""
    backend, vision = tower.backend, StreamVision(tower)
    states: list[Array] = []

    def look(_: str, outputs: Mapping[str, Tensor]) -> None:
        states.extend(
            backend.to_host(outputs[name]) for name in (HIDDEN, HIDDEN_OUT) if name in outputs
        )

    vision.observer = look
    recomputed = settings.recomputed(tower.spec.tokens)
    everything = [np.arange(tower.spec.tokens)] * tower.spec.blocks
    for index, pixels in enumerate(frames):
        states.clear()
        if settings.is_reference(index):
            hidden, indices = vision.reference(pixels), everything
        else:
            hidden, chosen = vision.reuse(pixels, recomputed, settings.selection)
            indices = [backend.to_host(one) for one in chosen]
        tokens = backend.to_host(tower.project({HIDDEN: hidden})[TOKENS])
        yield Passed(list(states), indices, tokens)


def through_transformers(
    weights: Any,  # noqa: ANN401
    frames: Iterable[Array],
    settings: Settings,
) -> Iterator[Passed]:
    """The frames through transformers' layers; one tower per depth shows every hidden state."""
    spec = weights.spec
    depths = [
        TorchVision(replace(weights, spec=spec.model_copy(update={"blocks": blocks})))
        for blocks in range(1, spec.blocks + 1)
    ]
    for index, pixels in enumerate(frames):
        if settings.is_reference(index):
            outcomes = [tower.reference(pixels) for tower in depths]
        else:
            recomputed = settings.recomputed(spec.tokens)
            outcomes = [tower.reuse(pixels, recomputed, settings.selection) for tower in depths]
        last = outcomes[-1]
        states = [outcome.hidden for outcome in outcomes]
        yield Passed(states, last.indices, depths[-1].project(last.hidden))


Stream = Callable[[Iterable[Array], Settings], Iterator[Passed]]


def _graphs(tower: VisionTower) -> Stream:
    return lambda frames, settings: through_graphs(tower, frames, settings)


def torch_tower(weights: VisionWeights) -> VisionTower:
    return VisionTower(TorchBackend(weights), weights.spec, "fp32")


RUNGS: dict[str, Callable[[Exported], Stream]] = {
    "oracle": lambda case: _graphs(case.oracle()),
    "torch": lambda case: _graphs(torch_tower(case.weights)),
    "transformers": lambda case: (
        lambda frames, settings: through_transformers(case.weights, frames, settings)
    ),
    "onnxruntime": lambda case: _graphs(case.onnxruntime()),
}


def relative_l2(expected: Array, got: Array) -> float:
    assert expected.shape == got.shape
    return difference(expected, got).relative_l2


# Golden files.


def test_every_rung_has_its_tolerance() -> None:
    assert RUNGS.keys() == TOLERANCES.keys()
    assert len(GOLDEN) == len(PRUNER_GOLDEN) == 2


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_streams_are_reproduced(case: str, rung: str, exported: Exporting) -> None:
    golden = np.load(DATA / f"{case}.npz")
    frames = golden["pixel_values"]
    settings = Settings(
        reference_interval=int(golden["interval"]),
        recompute_ratio=float(golden["ratio"]),
        selection="layerwise",
    )
    stream = RUNGS[rung](exported(case))
    kinds = set()
    for index, passed in enumerate(stream(frames, settings)):
        # The rung of transformers' layers shows the blocks' outputs only.
        expected = golden["hidden_states"][index][-len(passed.hidden_states) :]
        assert len(expected) >= len(passed.indices)
        worst = max(map(relative_l2, expected, passed.hidden_states))
        assert worst <= TOLERANCES[rung].golden_l2
        kinds.add(settings.is_reference(index))
        if not settings.is_reference(index):
            np.testing.assert_array_equal(passed.indices, golden["update_indices"][index])
    assert kinds == {True, False}
    every_frame = replace(settings, reference_interval=1)
    for expected, passed in zip(
        golden["dense_last"], stream(frames, every_frame), strict=True
    ):
        assert relative_l2(expected, passed.hidden_states[-1]) <= TOLERANCES[rung].golden_l2


Pruning = Callable[[Array, Array, float], tuple[Array, Array]]
"""tokens, history mean and count -> kept indices and frame mean."""


def prune_by_oracle(_: Path, example: Array, count: int) -> Pruning:
    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        pruned = pruner.prune("gaussian", tokens, mean, frames, count)
        return pruned.kept_indices, pruned.frame_mean

    return prune


def prune_by_torch(_: Path, example: Array, count: int) -> Pruning:
    module = Prune("gaussian", count)

    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        inputs = map(torch.from_numpy, (tokens, mean, np.array([frames], np.float32)))
        _, kept, frame_mean = module(*inputs)
        return kept.numpy(), frame_mean.numpy()

    return prune


def prune_by_onnxruntime(folder: Path, example: Array, count: int) -> Pruning:
    name = contracts.prune_graph("gaussian")
    mean = np.zeros(contracts.memory_width("gaussian", example.shape[1]), np.float32)
    inputs = tuple(map(torch.from_numpy, (example, mean, np.ones(1, np.float32))))
    with WeightsFile(folder / "weights.bin") as weights:
        writer = GraphWriter(folder, weights, "fp32", FreeAxis("M", 2), lambda _: None)
        # Another default than what is asked for below: the input decides.
        writer.write(name, Prune("gaussian", 5), PRUNE_CONTRACT, inputs, kind=name, count=5)
    engine = OnnxRuntimeEngine(name, folder / f"{name}.onnx", "cpu")

    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        arrays = {
            TOKENS: tokens,
            HISTORY_MEAN: mean,
            HISTORY_COUNT: np.array([frames], np.float32),
            COUNT: np.array([count], np.int64),
        }
        outputs = engine({key: _ort_value(array) for key, array in arrays.items()})
        return outputs[KEPT_INDICES].numpy(), outputs[contracts.FRAME_MEAN].numpy()

    return prune


def _ort_value(array: Array) -> Tensor:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("prune", [prune_by_oracle, prune_by_torch, prune_by_onnxruntime])
@pytest.mark.parametrize("file", PRUNER_GOLDEN)
def test_golden_pruned_streams_are_reproduced(
    file: str, prune: Callable[[Path, Array, int], Pruning], tmp_path: Path
) -> None:
    golden = np.load(DATA / f"{file}.npz")
    features, kept = golden["features"], golden["kept_indices"]
    pruning = prune(tmp_path, features[0], kept.shape[1])
    memory = PrunerMemory("gaussian", features.shape[2], window=1)
    for tokens, expected in zip(features, kept, strict=True):
        indices, frame_mean = pruning(tokens, memory.mean, memory.count)
        np.testing.assert_array_equal(indices, expected)
        memory.push(frame_mean)


# Between the rungs.


@pytest.mark.parametrize("case", WEIGHTS)
def test_every_graph_and_every_stream_equals_pytorch(case: str, exported: Exporting) -> None:
    one = exported(case)
    tower, precision = one.onnxruntime(), PRECISIONS[case]
    spec = tower.spec
    frames = [Preprocessor(spec)(frame.rgb).astype(np.float32) for frame in moving_frames(5)]
    settings = Settings(reference_interval=3, recompute_ratio=0.3, budget=3)
    report = ParityReport(precision)
    ticks = []
    tick: Callable[[], None] = lambda: ticks.append(1)  # noqa: E731
    first = (frames[0], frames[1])
    compare_graphs(tower, TorchGraphs(one.weights), first, settings, report, tick)
    compare_streams(tower, TorchVision(one.weights), frames, settings, report, tick)

    assert report.passed, [row for row in report.rows.values() if not row.passed]
    compared = {where for where, _ in report.rows}
    assert compared == contracts.vision_graphs(spec.blocks).keys() | {"dense", *SELECTIONS}
    if precision == "fp16":
        # Half precision was really computed in, and in nothing finer.
        assert max(row.relative_l2 for row in report.rows.values() if row.tensor == TOKENS) > 1e-5


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_recomputing_every_token_equals_dense(
    rung: str, selection: Any, exported: Exporting  # noqa: ANN401
) -> None:
    stream = RUNGS[rung](exported(GOLDEN[0]))
    frames = np.load(DATA / f"{GOLDEN[0]}.npz")["pixel_values"]
    every = Settings(reference_interval=4, recompute_ratio=1.0, selection=selection)
    dense = stream(frames, replace(every, reference_interval=1))
    for reused, full in zip(stream(frames, every), dense, strict=True):
        assert relative_l2(full.hidden_states[-1], reused.hidden_states[-1]) <= 1e-6
        assert relative_l2(full.tokens, reused.tokens) <= 1e-6

