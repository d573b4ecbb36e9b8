"""Stream metrics: exact, bounded, and comparable with dense."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

from stc.runtime.figures.metrics import (
    CAPACITY,
    STRETCHES,
    Reservoir,
    StreamMetrics,
    Trend,
    compare_with_dense,
    sparkline,
)
from stc.runtime.report import STAGES, FrameReport
from tests.frame_reports import POOLED, TOKENS, difference_reports, frame_report, video_frames


def _metrics(reports: list[FrameReport]) -> StreamMetrics:
    metrics = StreamMetrics(TOKENS, POOLED)
    for report in reports:
        metrics.add(report)
    return metrics


def test_percentiles_and_means_equal_numpys_by_kind_and_stage() -> None:
    reports = list(difference_reports(video_frames("street.mp4", 40)))
    summary = _metrics(reports).summary()
    assert (summary.frames, summary.reference_frames, summary.reuse_frames) == (40, 10, 30)
    kinds = summary.kinds()
    assert list(kinds) == ["reference", "reuse"]
    for name, kind in kinds.items():
        mine = [report for report in reports if report.kind == name]
        timings = {**kind.stages, "total": kind.total}
        for stage, timing in timings.items():
            ms = [r.total_ms if stage == "total" else r.stage_ms[stage] for r in mine]
            assert timing.p50_ms == np.percentile(ms, 50)
            assert timing.p95_ms == np.percentile(ms, 95)
            assert timing.mean_ms == pytest.approx(np.mean(ms))
            assert timing.max_ms == max(ms)
        assert set(timings) == {*STAGES, "total"}
        assert kind.frames == len(mine)
        assert kind.tokens_recomputed == (TOKENS if name == "reference" else TOKENS // 4)
        assert kind.tokens_kept == 58


def test_overhead_speed_and_token_means_come_from_the_reports() -> None:
    first = frame_report(0, "reference", stage_ms=(1.0, 40.0, 1.0, 0.9), engine_ms=38.0)  # 43 ms
    second = frame_report(1, stage_ms=(1.0, 4.0, 1.0, 0.9), engine_ms=2.0)  # 7 ms
    summary = _metrics([first, second]).summary()
    assert summary.host_overhead_fraction == pytest.approx(1 - 40 / 50)
    assert summary.frames_per_second == pytest.approx(2 / 0.050)
    assert summary.tokens_recomputed == (TOKENS + TOKENS // 4) / 2
    prefilled = _metrics([first, second]).summary(prefill_ms=50.0)
    assert prefilled.frames_per_second == pytest.approx(2 / 0.100)
    assert summary.tokens_kept == 58
    assert summary.trend_ms == pytest.approx((43.0, 7.0))


def test_memory_stays_bounded_over_a_hundred_thousand_frames() -> None:
    times = np.random.default_rng(0).gamma(4.0, 5.0, 100_000)
    report = frame_report(0)
    metrics = StreamMetrics(TOKENS, POOLED)
    sizes = []
    for index, total_ms in enumerate(times.tolist()):
        metrics.add(replace(report, index=index, total_ms=total_ms))
        if index in (49_999, 99_999):
            sizes.append(len(pickle.dumps(metrics)))
    assert sizes[1] < 1.001 * sizes[0] < 400_000
    reuse = metrics.summary().reuse
    assert reuse is not None
    assert reuse.frames == 100_000
    assert reuse.total.mean_ms == pytest.approx(times.mean())
    assert reuse.total.max_ms == times.max()
    assert reuse.total.p50_ms == pytest.approx(np.median(times), rel=0.05)
    assert reuse.total.p95_ms == pytest.approx(np.percentile(times, 95), rel=0.05)


def test_a_full_reservoir_still_takes_late_values_and_repeats_itself() -> None:
    values = np.concatenate([np.zeros(CAPACITY), np.ones(3 * CAPACITY)])
    medians = []
    for _ in range(2):
        reservoir = Reservoir()
        for value in values.tolist():
            reservoir.add(value)
        shares = [reservoir.quantile(share) for share in (0.15, 0.35)]
        medians.append(shares)
    assert medians == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize("count", [0, 1, STRETCHES, STRETCHES + 1, 1000, 4321])
def test_a_trend_keeps_the_mean_in_few_stretches(count: int) -> None:
    values = np.random.default_rng(1).random(count)
    trend = Trend()
    for value in values.tolist():
        trend.add(value)
    means = trend.means()
    length = 1
    while length * STRETCHES < count:
        length *= 2
    expected = [values[at : at + length].mean() for at in range(0, count, length)]
    assert len(means) <= STRETCHES
    assert means == pytest.approx(expected)


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == "▁▂▃█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


def test_an_empty_stream_has_a_summary() -> None:
    summary = StreamMetrics(TOKENS, POOLED).summary()
    assert summary.frames == 0
    assert summary.kinds() == {}
    assert summary.frames_per_second == summary.host_overhead_fraction == 0.0
    assert compare_with_dense(summary) is None


def test_a_summary_is_json() -> None:
    summary = _metrics([frame_report(0, "reference"), frame_report(1)]).summary()
    read = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert read == summary.to_json()
    assert read["reuse"]["stages"]["vision"]["p50_ms"] == 10.0
    assert read["reference_frames"] == 1


def test_savings_against_the_runs_own_reference_frames() -> None:
    reports = [frame_report(0, "reference", stage_ms=(1.0, 40.0, 1.0, 0.9))]  # 43 ms
    reports += [frame_report(i, stage_ms=(1.0, 10.0, 1.0, 0.9)) for i in (1, 2, 3)]  # 13 ms
    comparison = compare_with_dense(_metrics(reports).summary())
    assert comparison is not None
    assert comparison.basis == "reference frames"
    assert comparison.dense_vision_ms == 40.0
    assert comparison.vision_ms == (40 + 3 * 10) / 4
    assert comparison.vision_saving == pytest.approx(1 - 17.5 / 40)
    assert comparison.push_saving == pytest.approx(1 - (43 + 3 * 13) / 4 / 43)
    assert comparison.dense_prefill_tokens == POOLED
    assert comparison.prefill_tokens_saving == pytest.approx(1 - 58 / POOLED)


def test_savings_against_a_dense_run() -> None:
    dense = [
        frame_report(i, "reference", stage_ms=(1.0, 20.0, 1.0, 0.0), kept=np.arange(POOLED))
        for i in range(3)
    ]
    reports = [frame_report(0, "reference", stage_ms=(1.0, 24.0, 1.0, 0.9)), frame_report(1)]
    comparison = compare_with_dense(_metrics(reports).summary(), _metrics(dense).summary())
    assert comparison is not None
    assert comparison.basis == "dense run"
    assert comparison.vision_saving == pytest.approx(1 - 17 / 20)
    assert comparison.prefill_tokens_saving == pytest.approx(1 - 58 / POOLED)
    told = asdict(comparison)
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_one_slow_frame_does_not_decide_the_saving() -> None:
    reports = [frame_report(i, "reference" if i % 2 == 0 else "reuse") for i in range(20)]
    slow = [frame_report(20, "reference", stage_ms=(1.0, 5000.0, 2.0, 0.5)), *reports]
    comparison = compare_with_dense(_metrics(slow).summary())
    assert comparison is not None
    assert comparison.dense_vision_ms == comparison.vision_ms == 10.0
