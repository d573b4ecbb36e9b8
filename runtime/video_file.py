"""A video file: every sampled frame, in order. Imports PyAV; see `stc.runtime.video`."""

from __future__ import annotations

from collections.abc import Generator

from av.container import InputContainer
from av.error import FFmpegError

from stc.errors import VideoError
from stc.runtime.declared_size import is_cut_off
from stc.runtime.frame import Frame
from stc.runtime.video_clock import Clock
from stc.runtime.video_decoder import Decoder
from stc.runtime.video_errors import reason
from stc.runtime.video_sampler import FrameSampler, expected_frames
from stc.runtime.video_source import VideoSource

SPARSE = 4
"""Decoded frames per sampled frame from which on decoding may be what takes the time."""


class VideoFile(VideoSource):
    """Frames of a file, or of anything else that ends and can wait, at `fps` (None: all).

    Owns `container`. Raises VideoError, from the constructor without a video stream, while
    iterating when the file cannot be read on or no frame at all could be decoded. A file that was
    cut off, or of which the rest is unreadable, gives the frames it has; `loss` says so then.
    """

    is_live = False

    def __init__(self, container: InputContainer, source: str, *, fps: float | None) -> None:
        super().__init__(source)
        self._decoder = Decoder(container, self.name)
        self._source = source
        self._sampler = FrameSampler(fps, self._decoder.tick_s)
        self.rate = self._decoder.rate
        self.notice = self._decoder.notice
        if fps is not None and self.rate is not None and fps * SPARSE <= self.rate:
            self._decoder.decode_in_parallel()
        self.frames_expected = expected_frames(self._decoder.frames, self.rate, fps)
        self._frames = self._read()

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        self._frames.close()
        self._decoder.close()

    def _read(self) -> Generator[Frame, None, None]:
        clock = Clock(self._decoder.period_s)
        decoded = sampled = 0
        try:
            for picture in self._decoder.pictures():
                if picture is None:
                    self.broken += 1
                    continue
                decoded += 1
                time_s = clock.time_s(self._decoder.stamp_s(picture))
                if self._sampler.takes(time_s):
                    rgb = self._decoder.rgb(picture)
                    yield Frame(index=sampled, time_s=time_s, rgb=rgb)
                    sampled += 1
        except FFmpegError as error:
            raise VideoError(
                self.name,
                f"cannot be read on after {decoded} frames ({reason(error)})",
                mend="check the disk or the connection",
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
                mend="play it with ffplay, or write it again with ffmpeg",
            ) from last

    def _shortfall(self, decoded: int) -> VideoError | None:
        """Why `decoded` frames are not all that the file should have; None if they are."""
        counted = self._decoder.frames_counted
        if counted is not None and decoded >= counted:
            return None
        came = f"{decoded} frames" if counted is None else f"{decoded} of {counted} frames"
        if is_cut_off(self._source):
            return VideoError(
                self.name,
                f"ended early: {came}; the file is cut off",
                mend="copy or record it again",
            )
        if self._decoder.gave_up and decoded:
            return VideoError(
                self.name,
                f"ended early: {came}; what follows is unreadable",
                mend="check the disk, or write it again with ffmpeg",
            )
        return None
