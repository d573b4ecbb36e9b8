"""One ladder: golden files <- numpy oracle <- PyTorch <- ONNX Runtime, in fp32 and fp16.

The rungs stand in `tests.rungs`, what each may differ by in TOLERANCES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc.contracts import COUNT
from stc.engines.onnxruntime_backend import OnnxRuntimeEngine
from stc.export.choices import Prune
from stc.export.graphs.vision import GraphWriter
from stc.export.graphs.weights_file import WeightsFile
from stc.export.models.reference import TorchVision
from stc.method.difference import difference
from stc.method.graphs import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    KEPT_INDICES,
    PRUNE_CONTRACT,
    TOKENS,
    memory_width,
    prune_graph,
    vision_graphs,
)
from stc.method.pruner import PrunerMemory
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.vision import compare_graphs, compare_streams
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import KEEP_ALL, SCORINGS, SELECTIONS, Selection, Settings
from tests.following import Following, Leading
from tests.oracle import vision as oracle
from tests.oracle.stream import forward
from tests.rungs import RUNGS, torch_graphs
from tests.vision_cases import (
    DATA,
    GOLDEN,
    PRECISIONS,
    WEIGHTS,
    Exported,
    moving_frames,
    numpy_weights,
)

Array = NDArray[Any]
Exporting = Callable[[str], Exported]

PRUNER_GOLDEN = sorted(path.stem for path in DATA.glob("pruner_*.npz"))


@dataclass(frozen=True)
class Tolerance:
    """golden_l2: relative L2 of hidden states to the golden file's and to the oracle's, where
    indices are equal.
    dense_l2: relative L2 of recomputing every token to dense.
    """

    golden_l2: float
    dense_l2: float


TOLERANCES = {
    "oracle": Tolerance(1e-4, 1e-6),
    "torch": Tolerance(1e-4, 1e-6),
    "transformers": Tolerance(1e-4, 1e-6),
    "onnxruntime": Tolerance(1e-4, 1e-6),
}
"""What each rung may differ by."""
ORACLE_L2 = 1e-5
"""Relative L2 of ONNX Runtime's kept tokens to the oracle's, when both take the same tokens."""
ORACLE_GAP = 2e-6
"""By how much ONNX Runtime's choice may miss the best of the oracle's scores."""
HALF_L2 = 1e-5
"""Relative L2 to float32 above which a tower has computed in half precision; the limits it has to
keep are those of `stc.runtime.parity.report`."""


def relative_l2(expected: Array, got: Array) -> float:
    assert expected.shape == got.shape
    return difference(expected, got).relative_l2


def test_every_rung_has_its_tolerance_and_every_golden_file_is_there() -> None:
    assert RUNGS.keys() == TOLERANCES.keys()
    assert len(GOLDEN) == len(PRUNER_GOLDEN) == 2


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden_streams_are_reproduced(case: str, rung: str, exported: Exporting) -> None:
    with np.load(DATA / f"{case}.npz") as file:
        golden = dict(file)
    settings = Settings(
        reference_interval=int(golden["interval"]),
        recompute_ratio=float(golden["ratio"]),
        selection="layerwise",
    )
    frames, limit = golden["pixel_values"], TOLERANCES[rung].golden_l2
    stream = RUNGS[rung](exported(case))
    for index, passed in enumerate(stream(frames, settings)):
        blocks = len(passed.indices)
        # transformers' layers do not show the embedding.
        shown = len(passed.hidden_states)
        assert shown >= blocks == golden["hidden_states"].shape[1] - 1
        expected = golden["hidden_states"][index][-shown:]
        assert max(map(relative_l2, expected, passed.hidden_states)) <= limit
        if settings.is_reference(index):
            assert (golden["update_indices"][index] == -1).all()
        else:
            np.testing.assert_array_equal(passed.indices, golden["update_indices"][index])

    every_frame = stream(frames, replace(settings, reference_interval=1))
    for dense, passed in zip(golden["dense_last"], every_frame, strict=True):
        assert relative_l2(dense, passed.hidden_states[-1]) <= limit


Pruning = Callable[[Array, Array, float], tuple[Array, Array]]
"""tokens, mean and count of the history -> kept indices, frame mean."""


def prune_by_oracle(_: Path, features: Array, count: int) -> Pruning:
    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        pruned = oracle.prune("gaussian", tokens, mean, frames, count)
        return pruned.kept_indices, pruned.frame_mean

    return prune


def prune_by_torch(_: Path, features: Array, count: int) -> Pruning:
    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        inputs = map(torch.from_numpy, (tokens, mean, np.array([frames], np.float32)))
        _, kept, frame_mean = Prune("gaussian", count)(*inputs)
        return kept.numpy(), frame_mean.numpy()

    return prune


def prune_by_onnxruntime(folder: Path, features: Array, count: int) -> Pruning:
    name = prune_graph("gaussian")
    memory = memory_width("gaussian", features.shape[2])
    example = torch.from_numpy(features[0]), torch.rand(memory), torch.ones(1)
    with WeightsFile(folder / "weights.bin") as weights:
        writer = GraphWriter(folder, weights, "fp32", (), lambda _: None)
        # Another default than what is asked for below: the input decides.
        writer.write(name, Prune("gaussian", 5), PRUNE_CONTRACT, example, kind=name, count=5)
    engine = OnnxRuntimeEngine(name, folder / f"{name}.onnx", "cpu")

    def prune(tokens: Array, mean: Array, frames: float) -> tuple[Array, Array]:
        inputs = {
            TOKENS: tokens,
            HISTORY_MEAN: mean,
            HISTORY_COUNT: np.array([frames], np.float32),
            COUNT: np.array([count], np.int64),
        }
        to_device = onnxruntime.OrtValue.ortvalue_from_numpy
        outputs = engine({port: to_device(array) for port, array in inputs.items()})
        return outputs[KEPT_INDICES].numpy(), outputs[FRAME_MEAN].numpy()

    return prune


@pytest.mark.parametrize("prune_by", [prune_by_oracle, prune_by_torch, prune_by_onnxruntime])
@pytest.mark.parametrize("file", PRUNER_GOLDEN)
def test_golden_pruned_streams_are_reproduced(
    file: str, prune_by: Callable[[Path, Array, int], Pruning], tmp_path: Path
) -> None:
    with np.load(DATA / f"{file}.npz") as golden:
        features, kept = golden["features"], golden["kept_indices"]
    prune = prune_by(tmp_path, features, kept.shape[1])
    memory = PrunerMemory("gaussian", features.shape[2], window=1)
    for tokens, expected in zip(features, kept, strict=True):
        indices, frame_mean = prune(tokens, memory.mean, memory.count)
        np.testing.assert_array_equal(indices, expected)
        memory.push(frame_mean)


@pytest.mark.parametrize("case", WEIGHTS)
def test_every_graph_and_every_stream_equals_pytorch(case: str, exported: Exporting) -> None:
    one, precision = exported(case), PRECISIONS[case]
    tower = one.onnxruntime()
    frames = [Preprocessor(tower.spec)(frame.rgb).astype(np.float32) for frame in moving_frames(5)]
    settings = Settings(reference_interval=3, recompute_ratio=0.3, budget=3)
    report = ParityReport(precision)
    graphs, vision = torch_graphs(one.weights), TorchVision(one.weights)
    compare_graphs(tower, graphs, (frames[0], frames[1]), settings, report)
    compare_streams(tower, vision, frames, settings, report)

    assert report.passed, [row for row in report.rows.values() if not row.passed]
    compared = {where for where, _ in report.rows}
    assert compared == vision_graphs(tower.spec.blocks).keys() | {"dense", *SELECTIONS}
    worst = max(row.relative_l2 for row in report.rows.values() if row.tensor == TOKENS)
    assert (worst > HALF_L2) == (precision == "fp16")


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_selects_as_the_oracle_does(rung: str, exported: Exporting) -> None:
    one = exported("so400m heads")
    spec, (weights, _) = one.weights.spec, numpy_weights(one.weights)
    random = np.random.default_rng(0)
    still = random.normal(size=spec.pixel_shape)
    # All of the picture changes: where only a part does, every block selects that part.
    frames = [(still + 0.5 * random.normal(size=still.shape)).astype(np.float32) for _ in "1234"]
    references = forward(weights, frames[0]).references
    chosen = []
    for selection in SELECTIONS:
        settings = Settings(reference_interval=4, recompute_ratio=0.3, selection=selection)
        count = settings.recomputed(spec.tokens)
        passed = list(RUNGS[rung](one)(frames, settings))[1:]
        for frame, got in zip(frames[1:], passed, strict=True):
            expected = forward(weights, frame, references, count=count, selection=selection)
            np.testing.assert_array_equal(got.indices, expected.indices)
            last = expected.hidden_states[-1]
            assert relative_l2(last, got.hidden_states[-1]) <= TOLERANCES[rung].golden_l2
        chosen.append([one.indices[-1].tolist() for one in passed])
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_recomputing_every_token_equals_dense(
    selection: Selection, rung: str, exported: Exporting
) -> None:
    stream, limit = RUNGS[rung](exported(GOLDEN[0])), TOLERANCES[rung].dense_l2
    with np.load(DATA / f"{GOLDEN[0]}.npz") as golden:
        frames = golden["pixel_values"]
    every_token = Settings(reference_interval=4, recompute_ratio=1.0, selection=selection)
    dense = stream(frames, replace(every_token, reference_interval=1))
    for full, reused in zip(dense, stream(frames, every_token), strict=True):
        assert relative_l2(full.hidden_states[-1], reused.hidden_states[-1]) <= limit
        assert relative_l2(full.tokens, reused.tokens) <= limit


# Over the whole space of streams and settings.


Pair = tuple[VisionTower, VisionTower]


@pytest.fixture(scope="module")
def pairs(exported: Exporting) -> dict[str, Pair]:
    """By case: its tower on ONNX Runtime, and the oracle that follows it."""

    def pair(case: str) -> Pair:
        one = exported(case)
        spec = one.weights.spec
        leading = Leading(one.bundle)
        following = Following(one.weights, leading.choices)
        return VisionTower(leading, spec, "fp32"), VisionTower(following, spec, "fp32")

    return {case: pair(case) for case, precision in PRECISIONS.items() if precision == "fp32"}


@st.composite
def streams(draw: st.DrawFn) -> list[Frame]:
    """Up to 6 frames of any size: noise of which parts change, turn flat, or nothing does."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    rgb = random.integers(0, 256, (height, width, 3), np.uint8)
    frames = []
    for index in range(draw(st.integers(1, 6))):
        rgb = rgb.copy()
        top, left = int(random.integers(height)), int(random.integers(width))
        change = draw(st.sampled_from(["noise", "flat", "nothing"]))
        part = rgb if draw(st.booleans()) else rgb[top:, left : left + width // 2 + 1]
        if change == "noise":
            part[:] = random.integers(0, 256, part.shape, np.uint8)
        elif change == "flat":
            part[:] = random.integers(256)
        frames.append(Frame(index=index, time_s=float(index), rgb=rgb))
    return frames


@hypothesis_settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_onnxruntime_equals_the_oracle_for_every_stream_and_setting(
    data: st.DataObject, pairs: dict[str, Pair]
) -> None:
    led, followed = pairs[data.draw(st.sampled_from(sorted(pairs)), label="case")]
    assert isinstance(followed.backend, Following)
    ratios = st.floats(0, 1, exclude_min=True) | st.sampled_from([0.01, 0.25, 1.0])
    settings = Settings(
        reference_interval=data.draw(st.integers(1, 5), label="reference interval"),
        recompute_ratio=data.draw(ratios, label="recompute ratio"),
        selection=data.draw(st.sampled_from(SELECTIONS), label="selection"),
        budget=data.draw(st.integers(KEEP_ALL, led.spec.pooled), label="budget"),
        pruner=data.draw(st.sampled_from(SCORINGS), label="pruner"),
        anchor_window=data.draw(st.integers(1, 4), label="anchor window"),
    )
    sessions = StreamSession(led, settings), StreamSession(followed, settings)
    choices, gaps = followed.backend.choices, followed.backend.gaps
    choices.clear()
    followed.backend.tied = False
    for frame in data.draw(streams(), label="frames"):
        gaps.clear()
        got, expected = (session.push(frame) for session in sessions)
        assert not choices
        assert (got.index, got.kind) == (expected.index, expected.kind)
        np.testing.assert_array_equal(got.recomputed, expected.recomputed)
        np.testing.assert_array_equal(got.kept, expected.kept)
        assert relative_l2(expected.tokens, got.tokens) <= ORACLE_L2
        if followed.backend.tied:
            hypothesis.event("channels vary alike")
            break
        assert max(gaps, default=0.0) <= ORACLE_GAP
