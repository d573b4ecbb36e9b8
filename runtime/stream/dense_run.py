"""The dense run beside a run: the same frames in turns with it, every token of every frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from stc.runtime.figures.metrics import StreamMetrics, StreamSummary
from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS


class DenseRun:
    """Pushes frames dense through `tower`, in a session of its own.

    Adds up how near the kept tokens of the run beside it are to its own, in memory that does not
    grow.
    """

    def __init__(self, tower: VisionTower) -> None:
        self._session = StreamSession(tower, PRESETS["off"])
        self._metrics = StreamMetrics(tower.spec.tokens, tower.spec.pooled)
        self._tokens = 0
        self._min_cosine = 1.0
        self._cosines = self._error = self._norm = 0.0

    def add(self, frame: Frame, report: FrameReport) -> None:
        """`frame` is computed dense and compared with `report`, the other run's of it.

        Raises what `StreamSession.push` raises; then nothing was added.
        """
        dense = self._session.push(frame)
        self._metrics.add(dense)
        if report.kind == "reference":
            return
        got = report.tokens.astype(np.float64)
        expected = dense.tokens[report.kept].astype(np.float64)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (got * expected).sum(axis=1) / np.maximum(lengths, 1e-30)
        self._tokens += len(cosines)
        self._min_cosine = min(self._min_cosine, float(cosines.min()))
        self._cosines += float(cosines.sum())
        self._error += float(((got - expected) ** 2).sum())
        self._norm += float((expected**2).sum())

    def summary(self) -> StreamSummary:
        """The times of the dense frames so far."""
        return self._metrics.summary()

    def fidelity(self) -> dict[str, Any]:
        """Of the kept tokens of all reuse frames against dense; None where there was none."""
        if not self._tokens:
            return {"tokens": 0, "mean_cosine": None, "min_cosine": None, "relative_l2": None}
        return {
            "tokens": self._tokens,
            "mean_cosine": self._cosines / self._tokens,
            "min_cosine": self._min_cosine,
            "relative_l2": float(np.sqrt(self._error / max(self._norm, 1e-30))),
        }

    def line(self) -> str:
        """The fidelity in one line."""
        if not self._tokens:
            return "fidelity: no reuse frame to compare"
        figures = self.fidelity()
        return (
            f"fidelity of reuse frames' kept tokens against dense: cosine "
            f"{figures['mean_cosine']:.4f} mean, {figures['min_cosine']:.4f} lowest; "
            f"relative L2 {figures['relative_l2']:.4f}"
        )
