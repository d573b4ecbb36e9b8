"""A stream session: its schedule, its memory, and what it survives. On the numpy oracle, and on
ONNX Runtime where buffers could be mixed up."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from stc import contracts
from stc.contracts import EMBED, PROJECT, TOKENS
from stc.engines.engine import Engine, Tensor
from stc.engines.oracle_backend import OracleBackend
from stc.errors import EngineError, NonFiniteError, SettingsError, VideoError
from stc.pruner import PrunerMemory, prune
from stc.runtime.frame import Frame
from stc.runtime.report import STAGES, FrameReport
from stc.runtime.session import StreamSession
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import SCORINGS, Scoring, Settings
from stc.tower_weights import ProjectorWeights, TowerWeights
from tests.own_process import run_python
from tests.vision_cases import Exported, made_up, moving_frames, numpy_weights, oracle_tower

WEIGHTS = made_up(image_size=20)
"""25 tokens, 9 after pooling, 2 blocks."""
SETTINGS = Settings(
    reference_interval=3, recompute_ratio=0.3, selection="layerwise", budget=4, anchor_window=2
)


@pytest.fixture
def tower() -> VisionTower:
    return oracle_tower(WEIGHTS)


def pushed(tower: VisionTower, settings: Settings, frames: list[Frame]) -> list[FrameReport]:
    session = StreamSession(tower, settings)
    return [session.push(frame) for frame in frames]


def assert_equal(got: FrameReport, expected: FrameReport) -> None:
    """Two reports say the same, but for times and the frame's number."""
    assert got.kind == expected.kind
    np.testing.assert_array_equal(got.recomputed, expected.recomputed)
    np.testing.assert_array_equal(got.kept, expected.kept)
    np.testing.assert_array_equal(got.tokens, expected.tokens)


# The schedule and the report.


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_every_nth_frame_is_a_reference_frame(tower: VisionTower, interval: int) -> None:
    settings = replace(SETTINGS, reference_interval=interval)
    reports = pushed(tower, settings, moving_frames(12))
    for index, report in enumerate(reports):
        assert report.index == index
        reference = index % interval == 0
        assert report.kind == ("reference" if reference else "reuse")
        assert len(report.recomputed) == (25 if reference else 7)


def test_a_report_says_what_was_recomputed_and_kept(tower: VisionTower) -> None:
    frames = moving_frames(6)
    dense = pushed(tower, Settings(reference_interval=1, budget=0), frames)
    for frame, report, full in zip(frames, pushed(tower, SETTINGS, frames), dense, strict=True):
        assert report.time_s == frame.time_s
        for indices, of in ((report.recomputed, 25), (report.kept, 9)):
            assert indices.dtype == np.int64
            assert (np.diff(indices) > 0).all()
            assert 0 <= indices[0] <= indices[-1] < of
        assert report.tokens.shape == (4, 20)
        if report.kind == "reference":
            np.testing.assert_array_equal(report.tokens, full.tokens[report.kept])
        assert full.kept.tolist() == list(range(9))
        assert tuple(report.stage_ms) == STAGES
        assert sum(report.stage_ms.values()) == pytest.approx(report.total_ms)
        assert 0 < report.engine_ms < report.total_ms


@pytest.mark.parametrize("scoring", SCORINGS)
def test_tokens_are_pruned_with_the_memory_of_earlier_frames(
    tower: VisionTower, scoring: Scoring
) -> None:
    frames = moving_frames(6)
    settings = replace(SETTINGS, pruner=scoring)
    memory = PrunerMemory(scoring, width=20, window=settings.anchor_window)
    everything = pushed(tower, replace(settings, budget=0), frames)
    for full, report in zip(everything, pushed(tower, settings, frames), strict=True):
        expected = prune(scoring, full.tokens, memory.mean, memory.count, 4)
        memory.push(expected.frame_mean)
        np.testing.assert_array_equal(report.kept, expected.kept_indices)
        np.testing.assert_array_equal(report.tokens, expected.kept)


def test_a_budget_over_the_frames_tokens_is_refused(tower: VisionTower) -> None:
    assert StreamSession(tower, replace(SETTINGS, budget=9)).kept == 9
    with pytest.raises(SettingsError, match=r"--budget: got 10, expected at most 9.*--budget 9"):
        StreamSession(tower, replace(SETTINGS, budget=10))


def test_frames_of_any_size_are_taken(tower: VisionTower) -> None:
    random = np.random.default_rng(0)
    sizes = [(48, 64), (7, 200), (1, 1), (20, 20), (300, 5)]
    frames = [
        Frame(index=index, time_s=0.0, rgb=random.integers(0, 256, (*size, 3), np.uint8))
        for index, size in enumerate(sizes)
    ]
    reports = pushed(tower, replace(SETTINGS, reference_interval=1), frames)
    for frame, report in zip(frames[:1], reports, strict=False):
        (alone,) = pushed(tower, SETTINGS, [frame])
        assert_equal(report, alone)
    for report in pushed(tower, SETTINGS, frames):
        assert np.isfinite(report.tokens).all()


# After an error.


class Failing:
    """An engine of another backend that fails, or spoils its output `spoilt`, while `armed`."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.armed = False
        self.spoilt: str | None = None
        self._engine = engine

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        if self.armed and self.spoilt is None:
            raise EngineError(self.name, "the device is gone")
        results = self._engine(inputs, outputs)
        if self.armed and self.spoilt is not None:
            results[self.spoilt][-1] = np.inf
        return results


class Unreliable(OracleBackend):
    """The oracle, with engines that can be made to fail; `allocated_bytes` counts `empty`'s."""

    def __init__(self, tower: TowerWeights, projector: ProjectorWeights) -> None:
        super().__init__(tower, projector)
        self.engines: dict[str, Failing] = {}
        self.allocated_bytes = 0

    def load(self, graph: str) -> Engine:
        self.engines[graph] = Failing(super().load(graph))
        return self.engines[graph]

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        self.allocated_bytes += int(np.prod(shape)) * np.dtype(dtype).itemsize
        return super().empty(shape, dtype)


@pytest.fixture
def unreliable() -> Unreliable:
    return Unreliable(*numpy_weights(WEIGHTS))


GRAPHS = [EMBED, contracts.keys_graph(1), contracts.update_graph(0), PROJECT, "prune_dual_anchor"]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("fails_at", [3, 4])
def test_after_a_failing_graph_the_next_frame_is_a_reference_frame(
    unreliable: Unreliable, graph: str, fails_at: int
) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, SETTINGS)
    frames = moving_frames(9)
    kinds = []
    for index, frame in enumerate(frames):
        if index > 0:
            unreliable.engines[graph].armed = index == fails_at
        if index == fails_at:
            with pytest.raises(EngineError, match=f"{graph}: the device is gone"):
                session.push(frame)
            kinds.append("failed")
        else:
            kinds.append(session.push(frame).kind)
    scheduled = ["reference", "reuse", "reuse"] * 3
    scheduled[fails_at] = "failed"
    scheduled[fails_at + 1] = "reference"
    assert kinds == scheduled


def test_after_a_failing_graph_nothing_of_the_frame_is_remembered(unreliable: Unreliable) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, replace(SETTINGS, reference_interval=100))
    frames = moving_frames(6)
    session.push(frames[0])
    unreliable.engines[contracts.update_graph(1)].armed = True
    with pytest.raises(EngineError):
        session.push(frames[1])
    unreliable.engines[contracts.update_graph(1)].armed = False
    after = [session.push(frame) for frame in frames[2:]]

    undisturbed = StreamSession(tower, replace(SETTINGS, reference_interval=2))
    undisturbed.push(frames[0])
    # Frame 2 of this one is a reference frame by schedule, with one frame in the memory as well.
    undisturbed.frame_index = 2
    expected = [undisturbed.push(frame) for frame in frames[2:4]]
    for got, want in zip(after, expected, strict=False):
        assert_equal(got, want)


def test_after_a_picture_that_is_none_the_next_frame_is_a_reference_frame(
    tower: VisionTower,
) -> None:
    session = StreamSession(tower, SETTINGS)
    frames = moving_frames(5)
    for frame in frames[:3]:
        session.push(frame)
    # Frame 3, which the schedule makes a reference frame.
    with pytest.raises(VideoError):
        session.push(replace(frames[3], rgb=np.zeros((4, 4), np.uint8)))
    assert session.push(frames[4]).kind == "reference"


# NaN.


def _poison(tower: TowerWeights, projector: ProjectorWeights) -> dict[str, NDArray[Any]]:
    """By graph, a weight that it reads and none before it."""
    block = tower.blocks[1]
    return {
        EMBED: tower.embed.bias,
        contracts.keys_graph(1): block.key.weight,
        contracts.update_graph(1): block.fc2.weight,
        contracts.update_graph(0): tower.blocks[0].query.weight,
        PROJECT: projector.linear_2.weight,
    }


POISONED = list(_poison(*numpy_weights(WEIGHTS)))


@pytest.mark.parametrize("frame_index", [3, 4])
@pytest.mark.parametrize("graph", POISONED)
def test_nan_is_traced_to_its_graph_and_frame(graph: str, frame_index: int) -> None:
    weights = numpy_weights(WEIGHTS)
    session = StreamSession(VisionTower(OracleBackend(*weights), WEIGHTS.spec, "fp32"), SETTINGS)
    frames = moving_frames(9)
    for frame in frames[:frame_index]:
        session.push(frame)
    weight = _poison(*weights)[graph]
    sane = weight.flat[0]
    weight.flat[0] = np.nan
    with pytest.raises(NonFiniteError, match=f"^graph {graph}, frame {frame_index}: NaN"):
        session.push(frames[frame_index])
    weight.flat[0] = sane

    after = session.push(frames[frame_index + 1])
    assert after.kind == "reference"
    assert np.isfinite(after.tokens).all()
    assert session.push(frames[frame_index + 2]).kind == (
        "reference" if (frame_index + 2) % 3 == 0 else "reuse"
    )


@pytest.mark.parametrize("scoring", SCORINGS)
def test_infinity_in_a_token_that_is_not_kept_is_no_part_of_the_memory(
    unreliable: Unreliable, scoring: Scoring
) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, replace(SETTINGS, pruner=scoring))
    frames = moving_frames(6)
    session.push(frames[0])
    project = unreliable.engines[PROJECT]
    project.armed, project.spoilt = True, TOKENS
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="graph project, frame 1"):
        session.push(frames[1])
    project.armed = False
    for frame in frames[2:]:
        assert np.isfinite(session.push(frame).tokens).all()


# Memory.


def test_references_take_three_tensors_a_block_and_nothing_grows(unreliable: Unreliable) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    references = StreamVision(tower).references
    held = [*references.key, *references.value, *references.residual]
    assert references.size_bytes == sum(buffer.nbytes for buffer in held)
    assert references.size_bytes == 2 * 3 * 25 * 16 * 4

    session = StreamSession(tower, SETTINGS)
    assert session.references_bytes == references.size_bytes
    allocated = unreliable.allocated_bytes
    for frame in moving_frames(9):
        session.push(frame)
    assert unreliable.allocated_bytes == allocated


def test_references_of_a_half_precision_tower_take_half(
    exported: Callable[[str], Exported],
) -> None:
    half = exported("half").onnxruntime()
    spec = half.spec
    session = StreamSession(half, replace(SETTINGS, budget=2))
    assert session.references_bytes == 3 * spec.blocks * spec.tokens * spec.width * 2
    report = session.push(moving_frames(1)[0])
    assert report.tokens.dtype == np.float16


@pytest.fixture(params=["oracle", "onnxruntime"])
def any_tower(request: pytest.FixtureRequest, exported: Callable[[str], Exported]) -> VisionTower:
    case = exported("so400m heads")
    return case.oracle() if request.param == "oracle" else case.onnxruntime()


def test_sessions_that_share_a_tower_do_not_disturb_each_other(any_tower: VisionTower) -> None:
    first = replace(SETTINGS, reference_interval=2)
    second = replace(SETTINGS, selection="shared", pruner="gaussian", recompute_ratio=0.6)
    streams = {
        0: (first, moving_frames(8, seed=1)),
        1: (second, moving_frames(8, seed=2)),
    }
    alone = {key: pushed(any_tower, *stream) for key, stream in streams.items()}
    sessions = {key: StreamSession(any_tower, settings) for key, (settings, _) in streams.items()}
    together: dict[int, list[FrameReport]] = {0: [], 1: []}
    for key in (0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 0):
        frame = streams[key][1][len(together[key])]
        together[key].append(sessions[key].push(frame))
    for key, reports in together.items():
        assert len(reports) == 8
        for got, expected in zip(reports, alone[key], strict=True):
            assert_equal(got, expected)


@pytest.mark.parametrize("budget", [0, 4])
def test_reports_belong_to_the_caller(any_tower: VisionTower, budget: int) -> None:
    settings, frames = replace(SETTINGS, budget=budget), moving_frames(6)
    expected = pushed(any_tower, settings, frames)
    session = StreamSession(any_tower, settings)
    reports, copies = [], []
    for frame in frames:
        report = session.push(frame)
        reports.append(report)
        copies.append(report.tokens.copy())
    for report, copy in zip(reports, copies, strict=True):
        np.testing.assert_array_equal(report.tokens, copy)

    session = StreamSession(any_tower, settings)
    for frame, want in zip(frames, expected, strict=True):
        report = session.push(frame)
        assert_equal(report, want)
        report.tokens[:] = np.nan
        report.recomputed[:] = report.kept[:] = 0


# An endless stream.


def stream_figures(bundle: Path, frames: int) -> dict[str, Any]:
    done = run_python("-m", "tests.endless_stream", bundle, frames)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["frames"] == frames
    return figures


@pytest.mark.parametrize(
    "frames", [2_000, pytest.param(20_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_an_endless_stream_takes_neither_more_memory_nor_more_time(
    demo_bundle: Path, frames: int
) -> None:
    figures = stream_figures(demo_bundle, frames)
    second, last = figures["rss_bytes"][1], figures["rss_bytes"][3]
    assert abs(last - second) <= 0.01 * second, figures
    assert figures["fastest_ms"][3] < 1.5 * figures["fastest_ms"][1], figures
