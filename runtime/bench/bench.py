"""Latency of reference and reuse frames, and of PyTorch running the same method beside them.

The floor: a frame's multiply-accumulates (`stc.method.family.macs`). At ratio 0.25 a reuse frame of
SigLIP-so400m needs 0.31 of a reference frame's, so no runtime gets its time far below 0.31 of the
reference frame's, nor a saving above 0.52 at interval 4. Frames of both kinds, and PyTorch's, are
measured in turns in one run, so that a noisy machine is noisy for all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stc.method.family import FrameKind, frame_program, macs
from stc.runtime.sides.other import OtherStream
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame
from stc.runtime.vision.preprocess import Preprocessor

KINDS: tuple[FrameKind, ...] = ("reference", "reuse")
PAUSE_S = 0.3
"""Between two runtimes: idle threads of one spin for a while and would slow the other down."""


@dataclass
class Bench:
    """The times of the frames it was given, pushed through `session`, in milliseconds."""

    session: StreamSession
    reference_ms: list[float] = field(default_factory=list)
    reuse_ms: list[float] = field(default_factory=list)
    push_ms: dict[str, list[float]] = field(default_factory=lambda: {"reference": [], "reuse": []})
    torch_reference_ms: list[float] = field(default_factory=list)
    torch_reuse_ms: list[float] = field(default_factory=list)
    engine_ms: float = 0.0
    stage_ms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._preprocess = Preprocessor(self.session.tower.spec)

    def warm_up(self, frames: Iterable[Frame]) -> None:
        """Push `frames` unmeasured."""
        for frame in frames:
            self.session.push(frame)

    def measure(self, frame: Frame, torch_stream: OtherStream | None) -> None:
        """Push `frame` through the tower, then through `torch_stream`, and take both times."""
        report = self.session.push(frame)
        reference = report.kind == "reference"
        times = self.reference_ms if reference else self.reuse_ms
        times.append(report.stage_ms["vision"])
        self.push_ms[report.kind].append(report.total_ms)
        self.engine_ms += report.engine_ms
        for stage, ms in report.stage_ms.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + ms
        if torch_stream is None:
            return
        pixels = self._preprocess(frame.rgb)
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        if reference:
            torch_stream.reference(pixels)
        else:
            torch_stream.reuse(pixels, self.session.recomputed, self.session.settings.selection)
        torch_times = self.torch_reference_ms if reference else self.torch_reuse_ms
        torch_times.append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE_S)

    def figures(self) -> dict[str, Any]:
        """The measured figures and their floors; times of the tower unless called push.

        A push is a whole frame. Shares are of all pushes: of the engines (by the GPU's own clock on
        TensorRT), and of each stage. A figure is None when no frame of its kind was measured.
        """
        spec, chosen = self.session.tower.spec, self.session.settings
        interval = chosen.reference_interval
        reference, reuse = _p50(self.reference_ms), _p50(self.reuse_ms)
        every_push = [ms for times in self.push_ms.values() for ms in times]
        all_ms = sum(every_push)
        engines = _over(self.engine_ms, all_ms)
        needed, fewer = (
            macs(spec, frame_program(spec, self.session.tower.precision, chosen, kind))
            for kind in KINDS
        )
        floor = fewer / needed
        ratio = _over(reuse, reference)
        figures: dict[str, Any] = {
            "frames": len(self.reference_ms) + len(self.reuse_ms),
            "reference_frames": len(self.reference_ms),
            "reuse_frames": len(self.reuse_ms),
            "reference_ms_p50": reference,
            "reference_ms_p95": _p95(self.reference_ms),
            "reuse_ms_p50": reuse,
            "reuse_ms_p95": _p95(self.reuse_ms),
            "reuse_over_reference": ratio,
            "reuse_over_reference_floor": floor,
            "tower_saving": _saving(ratio, interval),
            "tower_saving_ceiling": _saving(floor, interval),
            "push_ms_p50": _p50(every_push),
            "push_ms_p95": _p95(every_push),
            "push_reference_ms_p50": _p50(self.push_ms["reference"]),
            "push_reference_ms_p95": _p95(self.push_ms["reference"]),
            "push_reuse_ms_p50": _p50(self.push_ms["reuse"]),
            "push_reuse_ms_p95": _p95(self.push_ms["reuse"]),
            "engine_share": engines,
            "stage_share": {stage: _over(ms, all_ms) for stage, ms in self.stage_ms.items()},
            "host_overhead_fraction": None if engines is None else 1.0 - engines,
            "reference_gmac": needed / 1e9,
            "reference_gflops": _over(2 * needed / 1e6, reference),
            "references_bytes": self.session.references_bytes,
        }
        if self.torch_reference_ms:
            torch_reference, torch_reuse = _p50(self.torch_reference_ms), _p50(self.torch_reuse_ms)
            figures |= {
                "torch_reference_ms_p50": torch_reference,
                "torch_reference_ms_p95": _p95(self.torch_reference_ms),
                "torch_reuse_ms_p50": torch_reuse,
                "torch_reuse_ms_p95": _p95(self.torch_reuse_ms),
                "speedup_reference": _over(torch_reference, reference),
                "speedup_reuse": _over(torch_reuse, reuse),
            }
        return figures


def _p50(times: list[float]) -> float | None:
    return statistics.median(times) if times else None


def _p95(times: list[float]) -> float | None:
    return float(np.percentile(times, 95)) if times else None


def _over(numerator: float | None, denominator: float | None) -> float | None:
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _saving(ratio: float | None, interval: int) -> float | None:
    """Share of the tower's time saved against every-frame-dense at reference interval N."""
    return None if ratio is None else (1.0 - ratio) * (interval - 1) / interval
