"""Frame reports for tests of displays and metrics: no model needed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stc.method.family import FrameKind
from stc.runtime.report import STAGES, FrameReport
from stc.runtime.video.source.source import Frame

DATA = Path(__file__).parent / "data"
TOKENS = 27**2
POOLED = 14**2


def video_frames(name: str, count: int, first: int = 0) -> list[Frame]:
    """`count` frames of tests/data/`name`, from frame `first`."""
    with av.open(DATA / name) as container:
        pictures = islice(container.decode(video=0), first, first + count)
        return [
            Frame(
                index=index,
                time_s=float(picture.time or 0.0),
                rgb=picture.to_ndarray(format="rgb24"),
            )
            for index, picture in enumerate(pictures, first)
        ]


def frame_report(
    index: int,
    kind: FrameKind = "reuse",
    *,
    recomputed: NDArray[np.int64] | None = None,
    kept: NDArray[np.int64] | None = None,
    stage_ms: tuple[float, float, float, float] = (1.0, 10.0, 2.0, 0.5),
    engine_ms: float = 12.0,
    time_s: float | None = None,
) -> FrameReport:
    """A report whose total is the sum of its stages and a tenth of a millisecond."""
    if recomputed is None:
        recomputed = np.arange(TOKENS if kind == "reference" else TOKENS // 4)
    return FrameReport(
        index=index,
        time_s=index / 5 if time_s is None else time_s,
        kind=kind,
        recomputed=recomputed,
        kept=np.arange(58) if kept is None else kept,
        tokens=np.zeros((58, 4), np.float32),
        stage_ms=dict(zip(STAGES, stage_ms, strict=True)),
        engine_ms=engine_ms,
        total_ms=sum(stage_ms) + 0.1,
    )


def difference_reports(frames: list[Frame], interval: int = 4) -> Iterator[FrameReport]:
    """Reports as of T = 729, n = 196, a quarter recomputed, 58 kept.

    Recomputed are the cells that differ most from the reference frame, kept those farthest from
    the frame's mean colour.
    """
    timer = np.random.default_rng(0)
    reference = np.zeros((27, 27, 3))
    for index, frame in enumerate(frames):
        cells = _cell_means(frame, 27)
        kind: FrameKind = "reuse" if index % interval else "reference"
        difference = np.abs(cells - reference).sum(axis=-1).ravel()
        if kind == "reference":
            reference = cells
        count = TOKENS if kind == "reference" else TOKENS // 4
        pooled = _cell_means(frame, 14)
        novelty = np.linalg.norm(pooled - pooled.mean(axis=(0, 1)), axis=-1).ravel()
        vision_ms = (40.0 if kind == "reference" else 13.0) + timer.gamma(2.0, 0.7)
        yield frame_report(
            index,
            kind,
            recomputed=np.sort(np.argsort(-difference, kind="stable")[:count]),
            kept=np.sort(np.argsort(-novelty, kind="stable")[:58]),
            stage_ms=(2.0, vision_ms, 1.5, 0.4),
            engine_ms=vision_ms + 1.0,
            time_s=frame.time_s,
        )


def _cell_means(frame: Frame, side: int) -> NDArray[np.float64]:
    """Mean colour of every cell: [side, side, 3]."""
    small = Image.fromarray(frame.rgb).resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float64)
