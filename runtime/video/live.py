"""A live video: the newest frame of a camera or stream. Imports PyAV; see `open_video`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.error import ExitError, FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from stc.errors import VideoError
from stc.runtime.video.causes import reason, unreadable
from stc.runtime.video.clock import Clock, FrameSampler
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.source.source import Frame, VideoSource, awaited

CLOSE_WAIT_S = 2.0
"""How long `close` waits for a reader that is blocked inside libav."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0
"""Between two attempts to open a lost source: at first, and when it has doubled long enough."""

_USUAL_MEND = "check that the camera or server is on, and the network"
_MUTE = (
    "the source answers and sends no picture",
    "restart the camera; of RTSP, try the other --rtsp-transport",
)


class _Picture(NamedTuple):
    """A sampled picture that nobody took yet."""

    time_s: float
    decoded_at_s: float
    rgb: Callable[[], NDArray[np.uint8]]


class LiveVideo(VideoSource):
    """The newest frame of a source that does not wait, at `fps` (None: all).

    A thread reads without pause and keeps the newest sampled frame only, so that a slow consumer
    sees fewer frames, not later ones. Frames are numbered as they are handed out, without gaps,
    and their time counts from the first of them: a model may be loaded after the source was opened.

    `opener` returns the source, opened, or raises FFmpegError; it is called again, from the
    thread, whenever the source ends or fails. Every container it returned is closed by the
    thread, at the latest when a read that blocks at `close` comes back.

    now: the wall clock that the times of frames keep to, in seconds.

    Raises VideoError, from the constructor when the source cannot be opened or has no video
    stream, while iterating when nothing could be decoded for `give_up_s` seconds.
    """

    is_live = True

    def __init__(
        self,
        opener: Callable[[], InputContainer],
        source: str,
        *,
        fps: float | None,
        give_up_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(source)
        self._opener = opener
        self._give_up_s = give_up_s
        self._now = now
        try:
            decoder = awaited(self._open)
        except FFmpegError as error:
            raise unreadable(self.name, error) from error
        self.rate = decoder.rate
        self.notice = decoder.notice
        self._sampler = FrameSampler(fps, decoder.tick_s)
        self._clock = Clock(decoder.period_s)
        self._handed_out = 0
        self._start_s: float | None = None
        # Shared with the thread, under `_changed`, except for the flag and the two plain values.
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._newest: _Picture | None = None
        self._asked = False
        self._failure: BaseException | None = None
        self._alive_at_s = time.monotonic()
        self._trouble = ("no frame came", _USUAL_MEND)
        self._reader = threading.Thread(
            target=self._follow, args=(decoder,), name=f"reader of {self.name}", daemon=True
        )
        self._reader.start()

    def __next__(self) -> Frame:
        with self._changed:
            self._asked = True
            newest = self._wait_for_newest()
        if newest is None:
            self.close()
            raise VideoError(
                self.name,
                f"no frame for {self._give_up_s:g} s ({self._trouble[0]})",
                fix=self._trouble[1],
            )
        self._handed_out += 1
        if self._start_s is None:
            self._start_s = newest.time_s
        time_s = newest.time_s - self._start_s
        rgb = self.cropped(newest.rgb())
        frame = Frame(index=self._handed_out - 1, time_s=time_s, rgb=rgb)
        self.oldest_ms = max(self.oldest_ms, (time.monotonic() - newest.decoded_at_s) * 1e3)
        return frame

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            self._asked = True
            self._changed.wait_for(self._due, max(0.0, min(timeout_s, self._left_s)))
            return self._due()

    def close(self) -> None:
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._reader.join(CLOSE_WAIT_S)

    @property
    def _left_s(self) -> float:
        """How long the source is waited for from now on."""
        return self._alive_at_s + self._give_up_s - time.monotonic()

    def _due(self) -> bool:
        return (
            self._newest is not None
            or self._failure is not None
            or self._closed.is_set()
            or self._left_s <= 0
        )

    def _wait_for_newest(self) -> _Picture | None:
        """The newest frame, taken out; None when none came in time."""
        while not self._due():
            self._changed.wait(min(self._left_s, threading.TIMEOUT_MAX))
        if self._closed.is_set():
            raise StopIteration
        if self._newest is None and self._failure is not None:
            raise self._failure
        newest, self._newest = self._newest, None
        return newest

    def _follow(self, decoder: Decoder | None) -> None:
        """The thread: read until closed, and open again what was lost."""
        wait_s = FIRST_WAIT_S
        try:
            while True:
                if decoder is not None and self._read(decoder):
                    wait_s = FIRST_WAIT_S
                if self._closed.wait(wait_s):
                    return
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                decoder = self._reopen()
        except BaseException as error:
            # Not lost: the consumer raises it.
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _open(self) -> Decoder:
        return Decoder(self._opener(), self.name)

    def _reopen(self) -> Decoder | None:
        try:
            decoder = self._open()
        except FFmpegError as error:
            self._trouble = (reason(error), _USUAL_MEND)
            return None
        except VideoError as error:
            # A camera that is starting up may answer before it has video.
            self._trouble = (error.got, error.fix)
            return None
        self.reconnects += 1
        return decoder

    def _read(self, decoder: Decoder) -> bool:
        """Read until the source is lost or closed; whether any frame was decoded."""
        decoded = 0
        try:
            for picture in decoder.pictures():
                if self._closed.is_set():
                    return False
                if picture is None:
                    self.broken += 1
                    continue
                decoded += 1
                self._alive_at_s = time.monotonic()
                time_s = self._clock.time_s(decoder.stamp_s(picture), arrived_s=self._now())
                if self._sampler.takes(time_s):
                    self._put(_Picture(time_s, self._alive_at_s, _rgb_of(decoder, picture)))
            self._trouble = ("the stream ended", _USUAL_MEND)
        except FFmpegError as error:
            self._trouble = (reason(error), _USUAL_MEND)
            if not decoded and isinstance(error, ExitError):
                self._trouble = _MUTE
        finally:
            decoder.close()
        return decoded > 0

    def _put(self, picture: _Picture) -> None:
        with self._changed:
            if self._newest is not None and self._asked:
                self.dropped += 1
            self._newest = picture
            self._changed.notify()


def _rgb_of(decoder: Decoder, picture: VideoFrame) -> Callable[[], NDArray[np.uint8]]:
    """Converts `picture` when it is called: most pictures of a slow consumer never are."""
    if not decoder.borrows:
        return lambda: decoder.rgb(picture)
    rgb = decoder.rgb(picture)
    return lambda: rgb
