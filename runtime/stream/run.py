"""A run of a stream: what `stc-run` does with every frame, and what is left when it ends.

Beside it every frame may be run dense: all its tokens, in turns with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import count
from typing import Any, Literal

import numpy as np

from stc.errors import EngineError, StcError, VideoError
from stc.runtime.answers.conversation import Conversation
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.figures.machine import machine_facts
from stc.runtime.figures.metrics import DenseComparison, StreamMetrics, StreamSummary
from stc.runtime.language.sampling import Sampling
from stc.runtime.report import FrameReport, Prefill
from stc.runtime.show.live_table import LiveTable
from stc.runtime.show.overlay import OverlayWriter
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame, VideoSource
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, Settings
from stc.shell import command

PIECES = 4
"""Pieces of an answer between two frames of a live source, which does not wait."""
TYPED_S = 0.1
"""Seconds after which a question that was typed is noticed, though no frame came."""
EndedBy = Literal["end", "frames", "interrupt", "loss", "error"]
"""The source's end, as many frames as were asked for, a signal, a lost source, a failing engine."""


class StreamRun:
    """Takes frames of `source`, `most` of them at most, and pushes each through `session`.

    With `dense` each is computed dense as well, with `overlay` drawn, and `conversation` asks and
    answers between them.

    ended_by: what ended the stream.
    failure: the error that ended it after its first frame; all before it is kept.
    `say` is told what else the user should know.
    """

    def __init__(
        self,
        source: VideoSource,
        session: StreamSession,
        say: Callable[[str], None],
        *,
        most: int | None = None,
        dense: DenseRun | None = None,
        overlay: OverlayWriter | None = None,
        conversation: Conversation | None = None,
    ) -> None:
        spec = session.tower.spec
        self.ended_by: EndedBy = "end"
        self.failure: StcError | None = None
        self._source = source
        self._session = session
        self._say = say
        self._most = most
        self._metrics = StreamMetrics(spec.tokens, spec.pooled)
        self._dense = dense
        self._overlay = overlay
        self._conversation = conversation
        self._wall_s = 0.0

    @property
    def expected(self) -> int | None:
        """How many frames there will be, estimated; None when nothing tells."""
        numbers = (self._source.frames_expected, self._most)
        return min((number for number in numbers if number is not None), default=None)

    def take(self, table: LiveTable) -> None:
        """Push frames, shown in `table`, until one of `EndedBy` ends the stream.

        Raises what ended it before its first frame.
        """
        start = time.perf_counter()
        try:
            with command.unmasked_stops():
                self._take_all(table)
        except (KeyboardInterrupt, EngineError) as stop:
            if not self._metrics.frames:
                raise
            self.ended_by = "interrupt"
            if isinstance(stop, EngineError):
                self.ended_by, self.failure = "error", stop
            else:
                command.stop_handled()
        self._wall_s = time.perf_counter() - start

    def _take_all(self, table: LiveTable) -> None:
        for frame in self._meanwhile():
            # A frame is in the metrics, the table and the overlay, or in none of them.
            with command.uninterrupted():
                self._push(frame, table)
            self._give_answers()

    def summary(self) -> StreamSummary:
        """The stream's figures so far."""
        prefill_ms = 0.0 if self._conversation is None else self._conversation.prefill_ms
        return replace(
            self._metrics.summary(prefill_ms),
            wall_s=self._wall_s,
            broken_frames=self._source.broken,
            dropped_frames=self._source.dropped,
            reconnects=self._source.reconnects,
            oldest_frame_ms=self._source.oldest_ms,
        )

    def _push(self, frame: Frame, table: LiveTable) -> None:
        report = self._session.push(frame)
        if self._dense is not None:
            self._dense.add(frame, report)
        self._metrics.add(report)
        table.count(
            dropped_frames=self._source.dropped,
            broken_frames=self._source.broken,
            reconnects=self._source.reconnects,
        )
        table.add(report)
        if self._overlay is not None:
            try:
                self._overlay.add(frame, report)
            except VideoError:  # closing the overlay raises it again
                self._overlay = None
                self._say("the overlay cannot be written on; the stream goes on without it")
        if self._conversation is not None:
            self._conversation.frame(report)

    def _meanwhile(self) -> Iterator[Frame]:
        """The frames; while none is there, questions are asked and answers go on.

        A source that cannot be read on after its first frame, or ends before it should, ends them
        as its end would, so that what was computed is kept.
        """
        conversation = self._conversation
        for taken in count():
            if taken == self._most:
                self.ended_by = "frames"
                return
            if conversation is not None:
                while not self._source.wait(0.0 if conversation.answering else TYPED_S):
                    conversation.advance()
            try:
                with command.unmasked_stops():
                    frame = next(self._source)
            except StopIteration:
                self._lost(self._source.loss)
                return
            except VideoError as error:
                if not taken:
                    raise
                self._lost(error)
                return
            yield frame

    def _lost(self, error: VideoError | None) -> None:
        if error is not None:
            self.ended_by, self.failure = "loss", error

    def _give_answers(self) -> None:
        """Questions due or typed are asked and answered; a few pieces when the source is live."""
        if self._conversation is not None:
            for _ in range(PIECES) if self._source.is_live else count():
                if not self._conversation.advance():
                    return


def run_document(
    summary: StreamSummary,
    *,
    settings: Settings,
    bundle: str,
    video: str,
    backend: str,
    weights: str | None = None,
    ended_by: EndedBy = "end",
    comparison: DenseComparison | None = None,
) -> dict[str, Any]:
    """`summary` with all it takes to judge or repeat it, as dicts, lists and finite numbers.

    `bundle` names the model, `weights` those that were chosen of it, `video` the source.
    """
    return {
        "bundle": bundle,
        "video": video,
        "backend": backend,
        "weights": weights,
        "settings": asdict(settings),
        "ended_by": ended_by,
        "summary": summary.to_json(),
        "against_dense": asdict(comparison) if comparison else None,
        "machine": machine_facts(),
    }


class DenseRun:
    """Pushes frames dense through `tower`, in a session of its own, which answers from `language`.

    Adds up how near the kept tokens of the run beside it are to its own, in memory that does not
    grow.
    """

    def __init__(self, tower: VisionTower, language: StreamLanguage | None = None) -> None:
        self._session = StreamSession(tower, PRESETS["off"], language)
        self._prefilled = Prefill()
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
        self._prefilled += dense.prefill or Prefill()
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

    def ask(self, question: str, max_new_tokens: int, sampling: Sampling) -> str:
        """The answer to `question` from every token of the frames so far; raises as
        `StreamSession.ask`."""
        text = str(self._session.ask(question, max_new_tokens, sampling))
        if self._session.language is not None:
            self._prefilled += self._session.language.prefilled()
        return text

    @property
    def error(self) -> StcError | None:
        """Why frames could not be remembered; None where they could."""
        return self._prefilled.error

    def language(self) -> dict[str, Any] | None:
        """What the language side took; None where there is none."""
        language, prefilled = self._session.language, self._prefilled
        if language is None:
            return None
        return {
            "frames_prefilled": prefilled.frames,
            "frames_left_out": prefilled.left_out,
            "prefill_ms_per_frame": prefilled.ms / max(1, prefilled.frames),
            "memory": asdict(language.facts()),
        }

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

    def lines(self) -> list[str]:
        """What a summary on a terminal says: the fidelity, and the language side."""
        told, language = [self._fidelity_line()], self.language()
        if language is not None:
            told.append(f"dense prefill {language['prefill_ms_per_frame']:.1f} ms per frame")
        if self._prefilled.error is not None:
            told.append(f"error: dense: {self._prefilled.error}")
        return told

    def _fidelity_line(self) -> str:
        if not self._tokens:
            return "fidelity: no reuse frame to compare"
        figures = self.fidelity()
        return (
            f"fidelity of reuse frames' kept tokens against dense: cosine "
            f"{figures['mean_cosine']:.4f} mean, {figures['min_cosine']:.4f} lowest; "
            f"relative L2 {figures['relative_l2']:.4f}"
        )
