"""A stream session: frames in, kept tokens and answers out.

Knows the reference schedule and the pruner's memory; knows nothing of where frames come from or
how results are shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    COUNT,
    FRAME_MEAN,
    HIDDEN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    KEPT,
    KEPT_INDICES,
    TOKENS,
)
from stc.engines.engine import Tensor
from stc.errors import LanguageError, NonFiniteError, SettingsError
from stc.pruner import PrunerMemory
from stc.ranges import shown
from stc.runtime.answer import Answer
from stc.runtime.frame import Frame, check_frame
from stc.runtime.indices import check_indices, check_shape
from stc.runtime.preprocess import Preprocessor
from stc.runtime.report import FrameKind, FrameReport
from stc.runtime.sampling import GREEDY, Sampling
from stc.runtime.stream_language import MOST_NEW_TOKENS, StreamLanguage
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import Settings


class StreamSession:
    """One video stream through a tower; several sessions may share one tower.

    Memory is fixed when the session is made: the references (`references_bytes`), a few work
    buffers and the pruner's memory. With `language` kept tokens are remembered there, within its
    own bounds, and questions can be asked.

    Every method may be called from any thread. Frames are computed one after the other, in the
    order in which `push` is called; sessions of one tower do not wait for one another, but on a
    GPU.

    Raises SettingsError when the settings do not fit the model.
    """

    def __init__(
        self, tower: VisionTower, settings: Settings, language: StreamLanguage | None = None
    ) -> None:
        if not isinstance(settings, Settings):
            raise SettingsError("settings", f"got {shown(settings)}", "a stc.settings.Settings")
        spec = tower.spec
        self._lock = threading.RLock()
        self.language = language
        self.tower = tower
        self.settings = settings
        self.recomputed = settings.recomputed(spec.tokens)
        self.kept = settings.kept(spec.pooled)
        self.frame_index = 0
        self._preprocess = Preprocessor(spec, dtype=tower.dtype)
        self._pixels = np.empty((3, spec.image_size, spec.image_size), tower.dtype)
        self._vision = StreamVision(tower)
        self._memory = PrunerMemory(
            settings.pruner, width=spec.language_width, window=settings.anchor_window
        )
        self._all_tokens = np.arange(spec.tokens, dtype=np.int64)
        self._all_pooled = np.arange(spec.pooled, dtype=np.int64)
        self._kept_count = tower.backend.to_device(np.array([self.kept], np.int64))

    @property
    def references_bytes(self) -> int:
        """Bytes the session's references hold."""
        return self._vision.references.size_bytes

    def push(self, frame: Frame) -> FrameReport:
        """The report of `frame`, computed now as reference or reuse frame.

        Frames follow one another as they are pushed, whatever their times. Raises VideoError for
        what is no Frame or pixels that are not an image, EngineError when a graph fails or the
        tower was closed, and NonFiniteError naming graph and frame when one yields NaN. After an
        error the session can be used on: the next frame becomes a reference frame. When only the
        language side fails, the report says so in `prefill`, and those tokens are not remembered.
        """
        check_frame(frame)
        with self._lock:
            self.tower.backend.refuse_closed()
            return self._pushed(frame)

    def _pushed(self, frame: Frame) -> FrameReport:
        index = self.frame_index
        self.frame_index += 1
        due = self.settings.is_reference(index) or not self._vision.references.valid
        kind: FrameKind = "reference" if due else "reuse"
        self._vision.engine_ms = 0.0
        marks = [time.perf_counter()]
        try:
            pixel_values = self._preprocess(frame.rgb, out=self._pixels)
            marks.append(time.perf_counter())
            hidden, recomputed = self._tower(pixel_values, kind)
            marks.append(time.perf_counter())
            tokens = self._project(hidden)
            marks.append(time.perf_counter())
            kept_tokens, kept, frame_mean = self._prune(tokens)
            # The frame's mean shows what tokens that were not kept would hide.
            means = () if frame_mean is None else frame_mean
            if not (np.isfinite(kept_tokens).all() and np.isfinite(means).all()):
                self._name_culprit(pixel_values, kind, index)
            self._check(recomputed, kept, kept_tokens, frame_mean, kind)
        except BaseException:
            self._vision.references.valid = False
            raise
        if frame_mean is not None:
            self._memory.push(frame_mean)
        marks.append(time.perf_counter())
        stages = np.diff(marks) * 1e3
        prefill = None if self.language is None else self.language.append(kept_tokens)
        return FrameReport(
            index=index,
            time_s=frame.time_s,
            kind=kind,
            recomputed=recomputed,
            kept=kept,
            tokens=kept_tokens,
            stage_ms=dict(
                zip(("preprocess", "vision", "project", "prune"), map(float, stages), strict=True)
            ),
            engine_ms=self._vision.engine_ms,
            total_ms=(marks[-1] - marks[0]) * 1e3,
            prefill=prefill,
        )

    def ask(
        self,
        question: str,
        max_new_tokens: int = MOST_NEW_TOKENS,
        sampling: Sampling = GREEDY,
    ) -> Answer:
        """The answer to `question` about the frames pushed so far; see `StreamLanguage.ask`.

        Frames can be pushed while it is read. Raises LanguageError when the session has no
        language side.
        """
        if self.language is None:
            raise LanguageError("question", "the stream was opened without a language side")
        return self.language.ask(question, max_new_tokens, sampling)

    def _tower(
        self, pixel_values: NDArray[np.floating], kind: FrameKind
    ) -> tuple[Tensor, NDArray[np.int64]]:
        if kind == "reference":
            return self._vision.reference(pixel_values), self._all_tokens.copy()
        try:
            hidden, _ = self._vision.reuse(pixel_values, self.recomputed, self.settings.selection)
        finally:
            # Here and not block by block: between two engines each look would take five times as
            # long. A graph that failed over the indices it was given is not the one to blame.
            every = [self.tower.backend.to_host(one) for one in self._vision.selected]
            for indices in every:
                self._check_selected(indices)
        return hidden, every[0]

    def _check_selected(self, indices: NDArray[Any]) -> None:
        """`indices` are those of a reuse frame. Raises EngineError unless they are."""
        graph, tokens = self.tower.select.name, self.tower.spec.tokens
        check_indices(graph, indices, self.recomputed, tokens, self.frame_index - 1)

    def _project(self, hidden: Tensor) -> Tensor:
        return self._vision.run(self.tower.project, {HIDDEN: hidden})[TOKENS]

    def _prune(
        self, tokens: Tensor
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32] | None]:
        """kept [k, D] and their indices [k] on the host, and the frame's mean [P] to remember."""
        backend = self.tower.backend
        if self.kept == self.tower.spec.pooled:
            return backend.to_host(tokens), self._all_pooled.copy(), None
        outputs = self._vision.run(
            self.tower.prune(self.settings.pruner),
            {
                TOKENS: tokens,
                HISTORY_MEAN: backend.to_device(self._memory.mean),
                HISTORY_COUNT: backend.to_device(np.array([self._memory.count], np.float32)),
                COUNT: self._kept_count,
            },
        )
        return (
            backend.to_host(outputs[KEPT]),
            backend.to_host(outputs[KEPT_INDICES]),
            backend.to_host(outputs[FRAME_MEAN]),
        )

    def _check(
        self,
        recomputed: NDArray[np.int64],
        kept: NDArray[np.int64],
        kept_tokens: NDArray[Any],
        frame_mean: NDArray[np.float32] | None,
        kind: FrameKind,
    ) -> None:
        """What came to the host is what a report may say. Raises EngineError unless it is."""
        spec, index = self.tower.spec, self.frame_index - 1
        width = spec.language_width
        if kind == "reuse":
            self._check_selected(recomputed)
        if frame_mean is None:
            check_shape(self.tower.project.name, TOKENS, kept_tokens, (spec.pooled, width), index)
            return
        graph = self.tower.prune(self.settings.pruner).name
        check_indices(graph, kept, self.kept, spec.pooled, index)
        check_shape(graph, KEPT, kept_tokens, (self.kept, width), index)
        check_shape(graph, FRAME_MEAN, frame_mean, self._memory.mean.shape, index)

    def _name_culprit(
        self, pixel_values: NDArray[np.floating], kind: FrameKind, frame_index: int
    ) -> None:
        """Run the frame again, looking at every output; always raises NonFiniteError."""
        mend = "export another checkpoint, or copy this one again"
        if self.tower.dtype == np.float16:
            mend = "export again with --precision fp32, or another checkpoint"

        def look(graph: str, outputs: Mapping[str, Tensor]) -> None:
            for name, tensor in outputs.items():
                if not np.isfinite(self.tower.backend.to_host(tensor)).all():
                    raise NonFiniteError(
                        f"graph {graph}, frame {frame_index}",
                        f"NaN or infinity in {name}",
                        "finite numbers",
                        mend,
                    )

        self._vision.observer = look
        try:
            hidden, _ = self._tower(pixel_values, kind)
            self._prune(self._project(hidden))
        finally:
            self._vision.observer = None
        raise NonFiniteError(f"frame {frame_index}", "NaN or infinity, not seen again on a re-run")
