"""One stream, from a bundle on disk to its answers: what Python users and stc-run open."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.library.library import libraries_of
from stc.errors import SettingsError
from stc.runtime.answers.answer import Answer
from stc.runtime.answers.stream_language import MAX_NEW_TOKENS, open_stream_language
from stc.runtime.language.sampling import GREEDY, Sampling
from stc.runtime.memory.settings import MemorySettings, Policy
from stc.runtime.report import FrameReport
from stc.runtime.stream.opening import BACKENDS, BackendName, check_device, open_backend
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import LAST_INDEX, Frame, RtspTransport, VideoSource
from stc.runtime.vision.tower import VisionTower
from stc.settings import Scoring, Selection, Settings, choose
from stc.shell.ranges import one_of, whole


class Stream:
    """A video stream through a bundle, as `open` opens it; close it, or use it in a `with`.

    Frames are computed in the order of their pushes; every method may be called from any thread.

    settings: how frames are compressed. references_bytes: what reference frames leave behind takes.
    backend: what computes: onnxruntime-cpu, onnxruntime-cuda, tensorrt or tensorrt-rtx.
    source: what `watch` reads, or read last. session: what runs it, which is not promised to stay.
    """

    def __init__(self, session: StreamSession, opened: ExitStack) -> None:
        self.settings = session.settings
        self.references_bytes = session.references_bytes
        self.backend = session.tower.backend.name
        self.source: VideoSource | None = None
        self.session = session
        self._opened = opened
        self._start = time.monotonic()
        self._indices = count()

    def push(self, frame: Frame | NDArray[np.uint8], time_s: float | None = None) -> FrameReport:
        """The report of `frame`, a Frame or a picture uint8 [height_px, width_px, 3], computed now.

        time_s: its time in seconds; None for the Frame's own, or that since the stream was opened.
        Raises VideoError for what is no picture, and EngineError as `StreamSession.push`: the
        stream can be used on.
        """
        if not isinstance(frame, Frame):
            since_s = time.monotonic() - self._start
            frame = Frame(index=next(self._indices), time_s=since_s, rgb=frame)
        return self.session.push(frame if time_s is None else replace(frame, time_s=time_s))

    def watch(
        self,
        source: str | os.PathLike[str],
        *,
        fps: float | None = None,
        frames: int | None = None,
        live: bool = False,
        give_up_s: float | None = None,
        rtsp_transport: RtspTransport | None = None,
        probe_s: float | None = None,
        crop: Sequence[int] | None = None,
    ) -> Generator[FrameReport, None, None]:
        """The reports of the frames of `source`, each computed when it is asked for.

        source and keywords are --video and the flags of stc-run. It is opened at the first step
        and closed with the iterator. Raises SettingsError for a keyword out of range or without
        effect; VideoError when the source cannot be opened, and after the last frame of one that
        was lost or cut off; errors as `push`.
        """
        if frames is not None:
            frames = whole("--frames", frames, least=1, most=LAST_INDEX)
        with open_video(
            str(source),
            fps=fps,
            live=live,
            give_up_s=give_up_s,
            rtsp_transport=rtsp_transport,
            probe_s=probe_s,
            crop=crop,
        ) as opened:
            self.source = opened
            yield from map(self.push, islice(opened, frames))
            if opened.loss is not None:
                raise opened.loss

    def ask(
        self, question: str, *, max_new_tokens: int = MAX_NEW_TOKENS, sampling: Sampling = GREEDY
    ) -> Answer:
        """The answer about the frames pushed so far: its text piece by piece as it is generated,
        or all of it by `str`.

        Raises LanguageError for a question that cannot be asked, as before the first frame,
        SettingsError for a value out of range, EngineError when the model fails.
        """
        return self.session.ask(question, max_new_tokens, sampling)

    def close(self) -> None:
        """What it holds on its device is given back; what is asked of it later is refused."""
        self._opened.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    *,
    backend: BackendName | None = None,
    device: str = "cpu",
    preset: str | Settings | None = None,
    reference_interval: int | None = None,
    recompute_ratio: float | None = None,
    selection: Selection | None = None,
    budget: int | None = None,
    pruner: Scoring | None = None,
    anchor_window: int | None = None,
    language: bool | None = None,
    memory: Policy | MemorySettings | None = None,
    weights: str | None = None,
    owns_process: bool = False,
) -> Stream:
    """A stream through the bundle at `path`. Keywords are the flags of stc-run, but for these:

    backend: None for that of the engines in the bundle, ONNX Runtime where there are none.
    preset: Settings, or a preset's name; None for the settings the bundle was exported with.
    language: whether frames are remembered for questions; None where the bundle can.
    memory: how they are, or the policy alone.
    weights: name of other weights in the bundle, None for its own.
    owns_process: no other library uses ONNX Runtime in this process: its sessions share threads.

    Raises SettingsError for a value out of range or without effect, BundleError when there is no
    whole bundle, EngineError when it cannot be run here, LanguageError when it cannot be asked.
    """
    if not isinstance(memory, (MemorySettings, type(None))):
        memory = MemorySettings(memory=memory)
    if language is False and memory is not None:
        raise SettingsError("--memory", "cannot be combined with language=False")
    bundle = Bundle.open(str(path))
    manifest = bundle.manifest
    if backend is None:
        built = [one for library in libraries_of(bundle) for one in library.entries().values()]
        backend = built[0].stamp.flavour if built and device == "cpu" else BACKENDS[0]
    check_device(device, one_of("--backend", backend, BACKENDS), weights)
    settings = choose(
        manifest.default_settings if preset is None else preset,
        manifest.vision.pooled,
        reference_interval=reference_interval,
        recompute_ratio=recompute_ratio,
        selection=selection,
        budget=budget,
        pruner=pruner,
        anchor_window=anchor_window,
    )
    if memory is None and (manifest.language if language is None else language):
        memory = MemorySettings()
    return open_stream(
        bundle, settings, memory, device, backend, weights, owns_process=owns_process
    )


def open_stream(
    bundle: Bundle,
    settings: Settings,
    memory: MemorySettings | None,
    device: str,
    backend: BackendName,
    weights: str | None = None,
    streams: int = 1,
    owns_process: bool = True,
) -> Stream:
    """A stream, with room for `streams` on its tower; without `memory` it answers no questions.

    Where engines run the tower, the language side of `weights` runs on ONNX Runtime. Raises what
    `open_backend`, `open_stream_language` and StreamSession do.
    """
    with ExitStack() as stack:
        apart = weights is not None and backend != BACKENDS[0]
        kept = settings.kept(bundle.manifest.vision.pooled)
        rows = 0 if memory is None or apart else memory.rows(kept)
        opened = partial(
            open_backend, bundle, device, language=memory is not None, owns_process=owns_process
        )
        computes = opened(backend, None if apart else weights, streams=streams, context=rows)
        stack.callback(computes.close)
        vision, precision = bundle.manifest.vision, bundle.manifest.provenance.precision
        tower, language = VisionTower(computes, vision, precision), None
        if apart:
            computes = opened(weights=weights, vision=False)
            stack.callback(computes.close)
        if memory is not None:
            language = open_stream_language(bundle, computes, memory, kept)
        session = StreamSession(tower, settings, language)
        stack.callback(session.close)
        return Stream(session, stack.pop_all())
