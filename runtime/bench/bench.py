"""Latency of reference and reuse frames, and of PyTorch running the same method beside them.

The floor: a frame's multiply-accumulates (`stc.method.family.macs`). At ratio 0.25 a reuse frame of
SigLIP-so400m needs 0.31 of a reference frame's, so no runtime gets its time far below 0.31 of the
reference frame's, nor a saving above 0.52 at interval 4. Frames of both kinds, and PyTorch's, are
measured in turns in one run, so that a noisy machine is noisy for all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from stc.method.family import FrameKind, frame_program, macs
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision

KINDS: tuple[FrameKind, ...] = ("reference", "reuse")
PAUSE_S = 0.3
"""Between two runtimes: idle threads of one spin for a while and would slow the other down."""
ENOUGH = 10
"""Frames of each kind after which nothing more is measured."""
FEW, FEW_AFTER_S = 3, 60.0
"""Frames of each kind that do for a big model, after so many seconds."""
ONE_AFTER_S = 180.0
"""Seconds after which one of each kind has to do: reference frames may be far apart."""

Times = dict[FrameKind, list[float]]
"""Milliseconds of every frame of a kind."""


class Bench:
    """The times of the frames it was given, pushed through `session`, in milliseconds.

    tower_ms, push_ms, torch_ms: of every kind of frame, those of the tower alone, of whole pushes
    and of PyTorch's tower.
    """

    def __init__(self, session: StreamSession) -> None:
        self.session = session
        self.tower_ms: Times = {"reference": [], "reuse": []}
        self.push_ms: Times = {"reference": [], "reuse": []}
        self.torch_ms: Times = {"reference": [], "reuse": []}
        self.engine_ms = 0.0
        self.stage_ms: dict[str, float] = {}
        self._preprocess = Preprocessor(session.tower.spec)

    def measure(self, frame: Frame, torch_stream: TorchVision | None) -> None:
        """Push `frame` through the tower, then through `torch_stream`, and take both times."""
        report = self.session.push(frame)
        self.tower_ms[report.kind].append(report.stage_ms["vision"])
        self.push_ms[report.kind].append(report.total_ms)
        self.engine_ms += report.engine_ms
        for stage, ms in report.stage_ms.items():
            self.stage_ms[stage] = self.stage_ms.get(stage, 0.0) + ms
        if torch_stream is None:
            return
        pixels = self._preprocess(frame.rgb)
        time.sleep(PAUSE_S)
        start = time.perf_counter()
        if report.kind == "reference":
            torch_stream.reference(pixels)
        else:
            torch_stream.reuse(pixels, self.session.recomputed, self.session.settings.selection)
        self.torch_ms[report.kind].append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE_S)

    def figures(self) -> dict[str, Any]:
        """The measured figures and their floors; times of the tower unless called push.

        A push is a whole frame. Shares are of all pushes: of the engines (by the GPU's own clock on
        TensorRT), and of each stage. A figure is None when no frame of its kind was measured.
        """
        spec, chosen = self.session.tower.spec, self.session.settings
        interval = chosen.reference_interval
        reference, reuse = (_p50(self.tower_ms[kind]) for kind in KINDS)
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
            "frames": len(every_push),
            "reference_frames": len(self.tower_ms["reference"]),
            "reuse_frames": len(self.tower_ms["reuse"]),
            "reuse_over_reference": ratio,
            "reuse_over_reference_floor": floor,
            "tower_saving": _saving(ratio, interval),
            "tower_saving_ceiling": _saving(floor, interval),
            **_quantiles("push", every_push),
            "engine_share": engines,
            "stage_share": {stage: _over(ms, all_ms) for stage, ms in self.stage_ms.items()},
            "host_overhead_fraction": None if engines is None else 1.0 - engines,
            "reference_gmac": needed / 1e9,
            "reference_gflops": _over(2 * needed / 1e6, reference),
            "references_bytes": self.session.references_bytes,
        }
        for kind in KINDS:
            figures |= _quantiles(kind, self.tower_ms[kind])
            figures |= _quantiles(f"push_{kind}", self.push_ms[kind])
            if self.torch_ms["reference"]:
                torch_ms = self.torch_ms[kind]
                figures |= _quantiles(f"torch_{kind}", torch_ms)
                figures[f"speedup_{kind}"] = _over(_p50(torch_ms), _p50(self.tower_ms[kind]))
        return figures


def _p50(times: list[float]) -> float | None:
    return statistics.median(times) if times else None


def _quantiles(name: str, times: list[float]) -> dict[str, float | None]:
    p95 = float(np.percentile(times, 95)) if times else None
    return {f"{name}_ms_p50": _p50(times), f"{name}_ms_p95": p95}


def _over(numerator: float | None, denominator: float | None) -> float | None:
    if numerator is None or not denominator:
        return None
    return numerator / denominator


def _saving(ratio: float | None, interval: int) -> float | None:
    """Share of the tower's time saved against every-frame-dense at reference interval N."""
    return None if ratio is None else (1.0 - ratio) * (interval - 1) / interval


def measure_latency(
    session: StreamSession,
    frames: Sequence[Frame],
    torch_stream: TorchVision | None,
    tick: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Bench:
    """The times of `frames`, in turns, behind a first interval that does not count.

    `tick` is given the number of frames measured of the rarer kind.
    """
    shown, interval = cycle(frames), session.settings.reference_interval
    # On a GPU until every frame is a replay, and an interval of those.
    warm_up = session.runner.warm_up_runs
    unmeasured = interval * (warm_up if warm_up == 1 else warm_up + 1)
    warming = Bench(session)
    for frame in islice(shown, unmeasured):
        warming.measure(frame, torch_stream)
    bench, start_s = Bench(session), clock()
    while True:
        bench.measure(next(shown), torch_stream)
        kinds = [bench.tower_ms[kind] for kind in KINDS[:interval]]
        measured, spent_s = min(map(len, kinds)), clock() - start_s
        tick(measured)
        if measured >= ENOUGH:
            return bench
        if (measured >= FEW and spent_s > FEW_AFTER_S) or (measured and spent_s > ONE_AFTER_S):
            return bench
