"""Stream metrics: what a whole stream cost, in memory that does not grow with it.

Knows nothing of how the numbers are shown, nor of other runs (see `stc.runtime.figures.savings`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stc.method.family import FrameKind
from stc.runtime.figures.trend import Trend
from stc.runtime.memory.reservoir import Reservoir
from stc.runtime.report import STAGES, FrameReport

_TOTAL = "total"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Times in milliseconds; p50 and p95 are exact up to 4096 frames and sampled beyond."""

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
    wall_s: float | None
    broken_frames: int
    dropped_frames: int
    reconnects: int
    oldest_frame_ms: float
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

    def summary(
        self,
        *,
        wall_s: float | None = None,
        prefill_ms: float = 0.0,
        broken_frames: int = 0,
        dropped_frames: int = 0,
        reconnects: int = 0,
        oldest_frame_ms: float = 0.0,
    ) -> StreamSummary:
        """The stream so far, with what only the caller knows of it."""
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
            wall_s=wall_s,
            broken_frames=broken_frames,
            dropped_frames=dropped_frames,
            reconnects=reconnects,
            oldest_frame_ms=oldest_frame_ms,
            trend_ms=self._trend.means(),
        )


class _KindMetrics:
    """Adds up the frames of one kind."""

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
