"""Stream metrics: what a whole stream cost, and would have cost dense, in bounded memory.

Knows nothing of how the numbers are shown.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from stc.method.family import FrameKind
from stc.runtime.report import STAGES, FrameReport

CAPACITY = 4096
"""Values of a series up to which quantiles are exact."""
STRETCHES = 60
"""Stretches of a series that a trend tells apart at most."""
_TOTAL = "total"
_BLOCKS = "▁▂▃▄▅▆▇█"

Basis = Literal["dense run", "reference frames"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times in milliseconds; p50 and p95 are exact up to CAPACITY frames and sampled beyond."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class KindSummary:
    """Frames of one kind: time of the push, time by stage of STAGES, mean token counts."""

    frames: int
    total: Timing
    stages: dict[str, Timing]
    tokens_recomputed: float
    tokens_kept: float


@dataclass(frozen=True, kw_only=True)
class StreamSummary:
    """What a stream cost.

    tokens, pooled: T and n of the model.
    reference, reuse: the frames of either kind; None when there was none.
    tokens_recomputed, tokens_kept: means over all frames.
    host_overhead_fraction: share of the pushes' time that was not spent inside engines.
    frames_per_second: of the pushes and of prefill, without decoding the video, waiting and
        answering.
    wall_s: time the stream took, decoding and waiting included; None when not measured.
    broken_frames, dropped_frames, reconnects: what befell the source.
    oldest_frame_ms: longest time between a live frame's decoding and its push; 0 for files.
    trend_ms: mean time of a push over equal stretches of the stream, in order.
    """

    frames: int
    reference_frames: int
    reuse_frames: int
    tokens: int
    pooled: int
    reference: KindSummary | None
    reuse: KindSummary | None
    tokens_recomputed: float
    tokens_kept: float
    host_overhead_fraction: float
    frames_per_second: float
    wall_s: float | None = None
    broken_frames: int = 0
    dropped_frames: int = 0
    reconnects: int = 0
    oldest_frame_ms: float = 0.0
    trend_ms: tuple[float, ...]

    def kinds(self) -> dict[FrameKind, KindSummary]:
        """The kinds of frame that occurred."""
        both: dict[FrameKind, KindSummary | None] = {
            "reference": self.reference,
            "reuse": self.reuse,
        }
        return {name: kind for name, kind in both.items() if kind is not None}

    def to_json(self) -> dict[str, Any]:
        """The same, of dicts, lists, strings and finite numbers."""
        return {**asdict(self), "trend_ms": list(self.trend_ms)}


class StreamMetrics:
    """Adds up the reports of one stream of T = `tokens`, n = `pooled` tokens per frame."""

    def __init__(self, tokens: int, pooled: int) -> None:
        self._tokens = tokens
        self._pooled = pooled
        self._kinds: dict[FrameKind, _KindMetrics] = {
            "reference": _KindMetrics(),
            "reuse": _KindMetrics(),
        }
        self._engine_ms = 0.0
        self._trend = Trend()

    @property
    def frames(self) -> int:
        """How many were added."""
        return sum(kind.frames for kind in self._kinds.values())

    def add(self, report: FrameReport) -> None:
        """`report` counts; it is not held."""
        self._kinds[report.kind].add(report)
        self._engine_ms += report.engine_ms
        self._trend.add(report.total_ms)

    def summary(self, prefill_ms: float = 0.0) -> StreamSummary:
        """The stream so far, of which prefill took `prefill_ms`; of the source it knows nothing."""
        reference, reuse = self._kinds["reference"], self._kinds["reuse"]
        frames = self.frames
        total_ms = reference.total_ms + reuse.total_ms
        computed_ms = total_ms + prefill_ms
        return StreamSummary(
            frames=frames,
            reference_frames=reference.frames,
            reuse_frames=reuse.frames,
            tokens=self._tokens,
            pooled=self._pooled,
            reference=reference.summary(),
            reuse=reuse.summary(),
            tokens_recomputed=(reference.recomputed + reuse.recomputed) / max(1, frames),
            tokens_kept=(reference.kept + reuse.kept) / max(1, frames),
            host_overhead_fraction=1.0 - self._engine_ms / total_ms if total_ms else 0.0,
            frames_per_second=1e3 * frames / computed_ms if computed_ms else 0.0,
            trend_ms=self._trend.means(),
        )


class _KindMetrics:
    def __init__(self) -> None:
        self.recomputed = 0
        self.kept = 0
        self._times = {stage: Reservoir() for stage in (*STAGES, _TOTAL)}

    @property
    def frames(self) -> int:
        return self._times[_TOTAL].count

    @property
    def total_ms(self) -> float:
        return self._times[_TOTAL].total

    def add(self, report: FrameReport) -> None:
        self.recomputed += len(report.recomputed)
        self.kept += len(report.kept)
        for stage in STAGES:
            self._times[stage].add(report.stage_ms[stage])
        self._times[_TOTAL].add(report.total_ms)

    def summary(self) -> KindSummary | None:
        if not self.frames:
            return None
        timings = {
            name: Timing(
                mean_ms=times.mean,
                p50_ms=times.quantile(0.5),
                p95_ms=times.quantile(0.95),
                max_ms=times.greatest,
            )
            for name, times in self._times.items()
        }
        return KindSummary(
            frames=self.frames,
            total=timings.pop(_TOTAL),
            stages=timings,
            tokens_recomputed=self.recomputed / self.frames,
            tokens_kept=self.kept / self.frames,
        )


class Trend:
    """Means over equal stretches of a series, at most STRETCHES of them.

    When a series outgrows them, neighbours merge: stretches are 1, 2, 4, ... values long.
    """

    def __init__(self) -> None:
        self._length = 1
        self._sums: list[float] = []
        self._in_last = 0

    def add(self, value: float) -> None:
        """`value` is the series' next."""
        if self._sums and self._in_last < self._length:
            self._sums[-1] += value
            self._in_last += 1
            return
        if len(self._sums) == STRETCHES:
            self._sums = [sum(self._sums[at : at + 2]) for at in range(0, STRETCHES, 2)]
            self._length *= 2
        self._sums.append(value)
        self._in_last = 1

    def means(self) -> tuple[float, ...]:
        """Mean of every stretch, in order; the last may hold fewer values."""
        if not self._sums:
            return ()
        whole = (total / self._length for total in self._sums[:-1])
        return (*whole, self._sums[-1] / self._in_last)


def sparkline(values: Sequence[float]) -> str:
    """One block character per value, its height from 0 to the greatest value."""
    greatest = max(values, default=0.0)
    if greatest <= 0.0:
        return _BLOCKS[0] * len(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * max(0.0, value) / greatest)] for value in values)


@dataclass(frozen=True, kw_only=True)
class DenseComparison:
    """A stream against dense, per frame. A saving is 1 - here / dense, so less than 0 is a loss.

    basis: what dense was measured on: a run of its own, or this run's reference frames, which are
        the same graphs over all tokens. Both are the same runtime; nothing else is comparable.
    vision_ms, push_ms: medians by kind of frame, weighted by how often the kind occurred: one
        slow frame (warm-up, another process) does not decide.
    vision_work: multiply-accumulates of the tower, as a share of dense's; None where it was not
        said what a frame takes.
    prefill_tokens: visual tokens that reach the language model; prefill is linear in them.
    """

    basis: Basis
    dense_vision_ms: float
    vision_ms: float
    vision_saving: float
    vision_work: float | None
    dense_push_ms: float
    push_ms: float
    push_saving: float
    dense_prefill_tokens: float
    prefill_tokens: float
    prefill_tokens_saving: float


def compare_with_dense(
    summary: StreamSummary,
    dense: StreamSummary | None = None,
    macs: Mapping[FrameKind, int] | None = None,
) -> DenseComparison | None:
    """`summary` against the run `dense`, or against its own reference frames.

    macs: multiply-accumulates of a frame of each kind; a reference frame takes what dense takes.

    A run's own reference frames say nothing of pruning, so there dense keeps all n tokens. None
    when there is nothing to compare with: no frame, or no reference frame and no `dense`.
    """
    kinds = tuple(summary.kinds().values())
    if dense is not None:
        basis: Basis = "dense run"
        dense_kinds = tuple(dense.kinds().values())
        dense_tokens = dense.tokens_kept
    else:
        basis = "reference frames"
        dense_kinds = (summary.reference,) if summary.reference else ()
        dense_tokens = float(summary.pooled)
    if not kinds or not dense_kinds:
        return None
    dense_vision_ms, vision_ms = (
        _per_frame([(kind.frames, kind.stages["vision"]) for kind in run])
        for run in (dense_kinds, kinds)
    )
    dense_push_ms, push_ms = (
        _per_frame([(kind.frames, kind.total) for kind in run]) for run in (dense_kinds, kinds)
    )
    return DenseComparison(
        basis=basis,
        dense_vision_ms=dense_vision_ms,
        vision_ms=vision_ms,
        vision_saving=_saving(vision_ms, dense_vision_ms),
        vision_work=None if macs is None else _work(summary, macs),
        dense_push_ms=dense_push_ms,
        push_ms=push_ms,
        push_saving=_saving(push_ms, dense_push_ms),
        dense_prefill_tokens=dense_tokens,
        prefill_tokens=summary.tokens_kept,
        prefill_tokens_saving=_saving(summary.tokens_kept, dense_tokens),
    )


def _work(summary: StreamSummary, macs: Mapping[FrameKind, int]) -> float:
    done = sum(macs[name] * kind.frames for name, kind in summary.kinds().items())
    return done / (macs["reference"] * summary.frames)


def _per_frame(timings: list[tuple[int, Timing]]) -> float:
    """Milliseconds, the medians weighted by how many frames they are of."""
    total_ms = sum(frames * timing.p50_ms for frames, timing in timings)
    return total_ms / sum(frames for frames, _ in timings)


def _saving(here: float, dense: float) -> float:
    return 1.0 - here / dense if dense else 0.0


class Reservoir:
    """A uniform sample of the values added so far, and their exact count, sum and maximum.

    Holds every value up to CAPACITY of them, so until then quantiles are exact; afterwards each
    value is in the sample with the same probability (Vitter's algorithm R). The same series
    gives the same sample.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.greatest = 0.0
        self._sample = array("d")
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """`value` (not negative) is part of the series."""
        self.count += 1
        self.total += value
        self.greatest = max(self.greatest, value)
        if len(self._sample) < CAPACITY:
            self._sample.append(value)
        elif (place := self._random.randrange(self.count)) < CAPACITY:
            self._sample[place] = value

    @property
    def mean(self) -> float:
        """Exact mean; 0 of an empty series."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value below which `share` (0..1) of the series lies; 0 of an empty series."""
        return float(np.quantile(np.asarray(self._sample), share)) if self._sample else 0.0
