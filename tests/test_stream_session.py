"""A stream session: its schedule, its reports and its memory. On the numpy oracle, and on ONNX
Runtime where buffers could be mixed up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stc.errors import SettingsError
from stc.method.pruner import PrunerMemory
from stc.runtime.report import STAGES, FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import SCORINGS, Scoring, Settings
from tests.oracle.vision import prune
from tests.session_case import SETTINGS, WEIGHTS, assert_equal, pushed
from tests.unreliable import Unreliable
from tests.vision_cases import Exported, moving_frames, numpy_weights, oracle_tower


@pytest.fixture
def tower() -> VisionTower:
    return oracle_tower(WEIGHTS)


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
@pytest.mark.parametrize("window", [1, 3])
def test_tokens_are_pruned_with_the_memory_of_earlier_frames(
    tower: VisionTower, scoring: Scoring, window: int
) -> None:
    frames = [moving_frames(1, seed)[0] for seed in range(8)]
    settings = replace(SETTINGS, pruner=scoring, anchor_window=window)
    memory = PrunerMemory(scoring, width=20, window=window)
    everything = pushed(tower, replace(settings, budget=0), frames)
    for full, report in zip(everything, pushed(tower, settings, frames), strict=True):
        expected = prune(scoring, full.tokens, memory.mean, memory.count, 4)
        memory.push(expected.frame_mean)
        np.testing.assert_array_equal(report.kept, expected.kept_indices)
        np.testing.assert_array_equal(report.tokens, expected.kept)


def test_settings_of_the_memory_arrive(tower: VisionTower) -> None:
    frames = [moving_frames(1, seed)[0] for seed in range(8)]
    changes: list[dict[str, Any]] = [{}, {"anchor_window": 1}]
    changes += [{"pruner": scoring} for scoring in SCORINGS[1:]]
    kept = [
        [report.kept.tolist() for report in pushed(tower, replace(SETTINGS, **change), frames)]
        for change in changes
    ]
    assert all(kept[0] != other for other in kept[1:])


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


# Memory.


@pytest.fixture
def unreliable() -> Unreliable:
    return Unreliable(*numpy_weights(WEIGHTS))


def test_references_take_three_tensors_a_block_and_nothing_grows(unreliable: Unreliable) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, SETTINGS)
    assert session.references_bytes == 2 * 3 * 25 * 16 * 4
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
