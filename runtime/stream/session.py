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

from stc.engines.engine import Look, Ran, Tensor, lock_of
from stc.errors import DeviceError, EngineError, LanguageError, NonFiniteError, SettingsError
from stc.method.family import FrameKind, indices_of
from stc.method.graphs import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    KEPT,
    KEPT_INDICES,
    PIXEL_VALUES,
    SELECT,
    TOKENS,
    prune_graph,
)
from stc.method.pruner import PrunerMemory
from stc.program import Arrays
from stc.runtime.answers.answer import Answer
from stc.runtime.answers.stream_language import MAX_NEW_TOKENS, StreamLanguage
from stc.runtime.language.sampling import GREEDY, Sampling
from stc.runtime.report import STAGES, FrameReport
from stc.runtime.video.source.source import Frame, check_frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from stc.shell.ranges import shown


class StreamSession:
    """One video stream through a tower; several sessions may share one tower.

    Memory is fixed when the session is made: the references (of `references_bytes`), a few work
    buffers and the pruner's memory. With `language` kept tokens are remembered there, within its
    own bounds, and questions can be asked.

    Every method may be called from any thread. Frames are computed one after the other, in the
    order in which `push` is called; sessions of one tower do not wait for one another, but on a
    GPU.

    On TensorRT frames are CUDA graphs, unless `captured` is False; reports then give GPU time by
    stage in `stage_ms` and in all in `engine_ms`, and `frame.rgb` may also be pixel values
    [3, Hpx, Wpx] of the network's dtype that lie on this GPU (DLPack or
    `__cuda_array_interface__`), which are read where they lie. A DeviceError ends the session: its
    memory is given back, and whatever is asked of it later is refused with the cause; the next
    session works, after a lost device on a tower opened anew, where the driver could reset it. Of
    the indices that graphs select there, those of the first block and of the kept tokens are
    checked, which come to the host anyway.

    Raises SettingsError when the settings do not fit the model, EngineError when an engine for them
    was not built, with the command that builds it, and DeviceError without enough memory.
    """

    def __init__(
        self,
        tower: VisionTower,
        settings: Settings,
        language: StreamLanguage | None = None,
        *,
        captured: bool = True,
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
        self._pixels = np.empty(spec.pixel_shape, tower.dtype)
        self._memory = PrunerMemory(
            settings.pruner, width=spec.language_width, window=settings.anchor_window
        )
        self._choices = [indices_of(block) for block in range(spec.blocks)]
        self._referenced = self._seen = False
        self._ended = ""
        with lock_of(tower.backend):
            self.runner = tower.runner(settings, captured=captured)
        self.references_bytes = self.runner.references_bytes

    @property
    def captured(self) -> set[str]:
        """Kinds of frame that are replayed from a CUDA graph."""
        return self.runner.captured

    def push(self, frame: Frame) -> FrameReport:
        """The report of `frame`, computed now as reference or reuse frame.

        Frames follow one another as they are pushed, whatever their times. Raises VideoError for
        what is no Frame or pixels that are not an image, EngineError when a graph fails or the
        tower was closed, and NonFiniteError naming graph and frame when one yields NaN. After an
        error the session can be used on, but for a DeviceError: the next frame becomes a reference
        frame. When only the language side fails, the report says so in `prefill`, and those tokens
        are not remembered.
        """
        check_frame(frame)
        with self._lock:
            self._refuse_ended()
            try:
                self.tower.backend.refuse_closed()
                return self._pushed(frame)
            except DeviceError as error:
                self._ended = f"was ended ({error})"
                self.close()
                raise

    def close(self) -> None:
        """Its memory is given back. A device that is lost is closed with all it holds."""
        with self._lock, lock_of(self.tower.backend):
            device = getattr(self.tower.backend, "device", None)
            if device is not None and device.lost:
                self.tower.close()
            self.runner.close()
            self._ended = self._ended or "is closed"

    def _refuse_ended(self) -> None:
        if self._ended:
            raise EngineError("stream", self._ended, "", "open a new one")

    def _pushed(self, frame: Frame) -> FrameReport:
        index = self.frame_index
        self.frame_index += 1
        due = self.settings.is_reference(index) or not self._referenced
        kind: FrameKind = "reference" if due else "reuse"
        start = time.perf_counter()
        try:
            pixels: Any = frame.rgb
            if not self.runner.takes(pixels):
                pixels = self._preprocess(pixels, out=self._pixels)
            prepared = time.perf_counter()
            ran = self._run(pixels, kind)
            found = ran.results
            frame_mean = found.get(FRAME_MEAN)
            tokens = found[TOKENS if frame_mean is None else KEPT]
            # The frame's mean shows what tokens that were not kept would hide.
            means = () if frame_mean is None else frame_mean
            if not (np.isfinite(tokens).all() and np.isfinite(means).all()):
                self._name_culprit(pixels, kind, index)
            self._check(found, index)
        except BaseException:
            self._referenced = False
            raise
        self._referenced = self._seen = True
        if frame_mean is not None:
            self._memory.push(frame_mean)
        spec = self.tower.spec
        stage_ms = dict.fromkeys(STAGES, 0.0) | ran.stage_ms
        stage_ms["preprocess"] = (prepared - start) * 1e3
        total_ms = (time.perf_counter() - start) * 1e3
        if not ran.on_gpu:  # by one clock, so what is left is what was looked at after pruning
            stage_ms["prune"] += total_ms - sum(stage_ms.values())
        return FrameReport(
            index=index,
            time_s=frame.time_s,
            kind=kind,
            recomputed=found.get(indices_of(0), np.arange(spec.tokens, dtype=np.int64)),
            kept=found.get(KEPT_INDICES, np.arange(spec.pooled, dtype=np.int64)),
            tokens=tokens,
            stage_ms=stage_ms,
            engine_ms=ran.engine_ms,
            total_ms=total_ms,
            prefill=None if self.language is None else self.language.append(tokens),
        )

    def ask(
        self,
        question: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
    ) -> Answer:
        """The answer to `question` about the frames pushed so far; see `StreamLanguage.ask`.

        Frames can be pushed while it is read. Raises LanguageError when the session has no
        language side, and before its first frame.
        """
        self._refuse_ended()
        if self.language is None:
            raise LanguageError("question", "the stream was opened without a language side")
        if not self._seen:
            raise LanguageError("question", "no frame was pushed yet", fix="push one first")
        return self.language.ask(question, max_new_tokens, sampling)

    def _run(self, pixels: Any, kind: FrameKind, look: Look | None = None) -> Ran:
        inputs = {PIXEL_VALUES: pixels}
        if self.kept < self.tower.spec.pooled:
            inputs[HISTORY_MEAN] = self._memory.mean
            inputs[HISTORY_COUNT] = np.array([self._memory.count], np.float32)
        try:
            return self.runner.run(kind, inputs, look)
        finally:
            # Not between two engines, where each look would take five times as long. A graph that
            # failed over the indices it was given is not the one to blame.
            if kind == "reuse" and self.runner.cheap_reads:
                for name in self._choices:
                    if self.runner.wrote(name):
                        self._check_selected(self.runner.read(name))

    def _check_selected(self, indices: NDArray[Any]) -> None:
        _check_indices(SELECT, indices, self.tower.spec.tokens, self.frame_index - 1)

    def _check(self, found: Arrays, index: int) -> None:
        """What came to the host is what a report may say. Raises EngineError unless it is."""
        if indices_of(0) in found:
            self._check_selected(found[indices_of(0)])
        if KEPT_INDICES in found:
            graph = prune_graph(self.settings.pruner)
            _check_indices(graph, found[KEPT_INDICES], self.tower.spec.pooled, index)

    def _name_culprit(self, pixels: Any, kind: FrameKind, frame_index: int) -> None:
        """Run the frame again, looking at every output; always raises NonFiniteError."""
        fix = "export another checkpoint, or copy this one again"
        if self.tower.dtype == np.float16:
            fix = "export again with --precision fp32, or another checkpoint"

        def look(graph: str, outputs: Mapping[str, Tensor]) -> None:
            for name, tensor in outputs.items():
                if not np.isfinite(self.tower.backend.to_host(tensor)).all():
                    raise NonFiniteError(
                        f"graph {graph}, frame {frame_index}",
                        f"NaN or infinity in {name}",
                        "finite numbers",
                        fix,
                    )

        self._run(pixels, kind, look)
        raise NonFiniteError(f"frame {frame_index}", "NaN or infinity, not seen again on a re-run")


def _check_indices(graph: str, indices: NDArray[Any], of: int, frame_index: int) -> None:
    """Raises EngineError unless `indices`, at least one, ascend, each once, from 0, below `of`.

    A graph that was altered and signed anew, or an engine that computes wrongly, may yield any
    number: a negative one would silently take a token from the other end. How many they are, and of
    which type, the buffer they were written to has settled.
    """
    # Where they ascend, the first and the last speak for all. Counting is the fastest way to ask.
    ascending = not np.count_nonzero(indices[1:] <= indices[:-1])
    if not (ascending and indices[0] >= 0 and indices[-1] < of):
        got = f"indices from {indices.min()} to {indices.max()}"
        if not ascending:
            got += ", not ascending"
        expected = f"{len(indices)} of 0 to {of - 1}, ascending"
        fix = "export the bundle again, and build its engines again if it has some"
        raise EngineError(f"graph {graph}, frame {frame_index}", got, expected, fix)
