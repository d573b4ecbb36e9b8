"""The dense run beside a run: the same frames in turns with it, every token of every frame."""

from __future__ import annotations

from stc.runtime.figures.fidelity import Fidelity
from stc.runtime.figures.metrics import StreamMetrics, StreamSummary
from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS


class DenseRun:
    """Pushes frames dense through `tower`, in a session of its own.

    fidelity: how near the compared run's kept tokens are to this run's.
    """

    def __init__(self, tower: VisionTower) -> None:
        self.fidelity = Fidelity()
        self._session = StreamSession(tower, PRESETS["off"])
        self._metrics = StreamMetrics(tower.spec.tokens, tower.spec.pooled)

    def add(self, frame: Frame, report: FrameReport) -> None:
        """`frame` is computed dense and compared with `report`, the other run's of it.

        Raises what `StreamSession.push` raises; then nothing was added.
        """
        dense = self._session.push(frame)
        self._metrics.add(dense)
        self.fidelity.add(report, dense)

    def summary(self) -> StreamSummary:
        """The times of the dense frames so far."""
        return self._metrics.summary()
