"""A video file: every sampled frame, in order. Imports PyAV; see `stc.runtime.video.open`."""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags

from stc.errors import VideoError
from stc.runtime.video.causes import reason
from stc.runtime.video.clock import (
    LONGEST_PAUSE_OF_RESTARTING_S,
    LONGEST_PAUSE_S,
    Clock,
    Foreseen,
    FrameSampler,
    expected_frames,
)
from stc.runtime.video.decoding.declared_size import is_cut_off
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.source.source import Awaited, Frame, VideoSource

SPARSE = 4
"""Decoded frames per sampled frame from which on decoding may be what takes the time."""


class VideoFile(VideoSource):
    """Frames of a file, or of anything else that ends and can wait, at `fps` (None: all).

    Owns `container`. waits: it may wait for others, as a server or a pipe does, which Ctrl-C does
    not wait for. Raises VideoError, from the constructor without a video stream, while iterating
    when the file cannot be read on or no frame at all could be decoded. A file that was cut off,
    or of which the rest is unreadable, gives the frames it has; `loss` says so then.
    """

    is_live = False

    def __init__(
        self, container: InputContainer, source: str, *, fps: float | None, waits: bool = False
    ) -> None:
        super().__init__(source)
        if container.format.name == "tty":  # libav plays plain text as a terminal recording
            container.close()
            raise VideoError(self.name, "a text file", "a video", "name the file of the video")
        self._decoder = Decoder(container, self.name)
        self._source = source
        restarting = container.format.flags & cast(int, Flags.ts_discont.value)
        longest_s = LONGEST_PAUSE_OF_RESTARTING_S if restarting else LONGEST_PAUSE_S
        self._clock = Clock(self._decoder.period_s, longest_s)
        self._sampler = FrameSampler(fps, self._decoder.tick_s)
        self.rate = self._decoder.rate
        self.notice = self._decoder.notice
        if fps is not None and self.rate is not None and fps * SPARSE <= self.rate:
            self._decoder.decode_in_parallel()
        self.frames_expected = expected_frames(self._decoder.frames, self.rate, fps)
        self._waits = Awaited(self._decoder.pictures()) if waits else None
        self._frames = self._read()

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        self._frames.close()
        if self._waits is not None:
            self._waits.close()
        # A thread that is still inside libav lets go of the container when it comes back.
        if self._waits is None or not self._waits.is_abandoned:
            self._decoder.close()

    def _read(self) -> Generator[Frame, None, None]:
        decoded = sampled = 0
        try:
            pictures = Foreseen(self._waits or self._decoder.pictures())
            for picture in pictures:
                if picture is None:
                    self.broken += 1
                    continue
                decoded += 1
                stamp_s = self._decoder.stamp_s
                following = (None if one is None else stamp_s(one) for one in pictures.coming())
                time_s = self._clock.time_s(stamp_s(picture), following)
                if self._sampler.takes(time_s):
                    rgb = self.cropped(self._decoder.rgb(picture))
                    yield Frame(index=sampled, time_s=time_s, rgb=rgb)
                    sampled += 1
        except FFmpegError as error:
            raise VideoError(
                self.name,
                f"cannot be read on after {decoded} frames ({reason(error)})",
                fix="check the disk or the connection",
            ) from error
        self.loss = self._shortfall(decoded)
        if decoded == 0:
            if self.loss is not None:
                raise self.loss
            last = self._decoder.last_error
            why = f" ({reason(last)})" if last else ""
            raise VideoError(
                self.name,
                f"none of its frames could be decoded{why}",
                fix="play it with ffplay, or write it again with ffmpeg",
            ) from last

    def _shortfall(self, decoded: int) -> VideoError | None:
        """Why `decoded` frames are not all that the file should have; None if they are."""
        counted = self._decoder.frames_counted
        if counted is not None and decoded >= counted:
            return None
        came = f"{decoded} frames" if counted is None else f"{decoded} of {counted} frames"
        if is_cut_off(self._source):
            why, fix = "the file is cut off", "copy or record it again"
        elif self._decoder.gave_up and decoded:
            why, fix = "what follows is unreadable", "check the disk, or write it again with ffmpeg"
        else:
            return None
        return VideoError(self.name, f"ended early: {came}; {why}", fix=fix)
