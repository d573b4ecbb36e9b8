"""The overlay: the video again, with the tokens that were recomputed and kept marked on it.

PyAV and Pillow are imported when a writer is made, so that this module loads without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from stc.errors import VideoError
from stc.manifest import Grid
from stc.runtime.output import whole_file
from stc.runtime.report import FrameReport
from stc.runtime.video.decoding.libraries import require_av, require_pillow
from stc.runtime.video.source.source import Frame

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import OutputContainer
    from PIL.Image import Image

    from stc.runtime.show.canvas import Canvas

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},  # 3 x FF_QP2LAMBDA
}
_TICK_S = Fraction(1, 1000)
_ALONE_TICKS = 200  # a single frame is shown
_BT601 = 6  # AVColorSpace of what swscale makes of RGB; untagged, players guess by picture size


class OverlayWriter:
    """Writes a video of the frames it is given, marked with what their reports say.

    `path` ends in .mp4, .mov or .mkv. It appears, whole, when the `with` block ends well; when
    the block, or an `add` in it, raises, whatever stood there before stays untouched. `grid` is the
    model's, `covered` the shares of height and width that its patches see.
    Size and scale follow the first frame; every frame is shown at its own time after that one.

    Raises VideoError when PyAV or Pillow is missing, the ending is unknown, the path cannot be
    written, the disk is full, or no frame was added.
    """

    def __init__(
        self, path: Path | str, grid: Grid, covered: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        require_av()
        require_pillow()
        self._path = Path(path)
        if self._path.suffix.lower() not in _FORMATS:
            raise VideoError(
                self._path, f"unknown ending {self._path.suffix!r}", " or ".join(_FORMATS)
            )
        self._grid, self._covered = grid, covered
        self._still: Image | None = None
        self._still_concentration = -1.0

    def __enter__(self) -> OverlayWriter:
        import av

        self._canvas: Canvas | None = None
        self._shown_ticks = -1
        self._lasts_ticks = _ALONE_TICKS
        self._failure: VideoError | None = None
        with self._one_line_errors(), ExitStack() as stack:
            self._file = _UnfailingFile(stack.enter_context(whole_file(self._path)))
            self._container: OutputContainer = av.open(
                self._file, "w", format=_FORMATS[self._path.suffix.lower()]
            )
            stack.push(self._close)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._failure is not None:
            kind, error = VideoError, self._failure
        with self._one_line_errors():
            self._open.__exit__(kind, error, trace)
        if self._failure is not None and error is self._failure:
            raise self._failure

    def add(self, frame: Frame, report: FrameReport) -> None:
        """Append `frame`, marked with `report`.

        Raises VideoError when it cannot be written, as the end of the `with` block does then.
        """
        try:
            with self._one_line_errors():
                self._append(frame, report)
        except VideoError as failure:
            self._failure = failure
            raise

    def save_still(self, path: Path | str) -> None:
        """`path` holds, as a PNG, the reuse frame whose recomputed tokens lie closest together.

        There the cacher found what moved; scattered tokens are noise. Without a reuse frame it
        is the last reference frame. May be called inside the `with` block or after it.

        Raises VideoError when no frame was added or the file cannot be written.
        """
        if self._still is None:
            raise VideoError(path, "no frame to save", "a video of at least one frame")
        try:
            with whole_file(Path(path)) as file:
                self._still.save(file, format="PNG", optimize=True)
        except OSError as error:
            raise VideoError(path, f"cannot be written ({error.strerror or error})") from error

    def _append(self, frame: Frame, report: FrameReport) -> None:
        from av import VideoFrame

        from stc.runtime.show.canvas import Canvas

        if self._canvas is None:
            self._canvas = Canvas(frame, self._grid, self._covered)
            self._stream = self._add_stream(self._canvas)
            self._start_s = frame.time_s
        picture = self._canvas.draw(frame, report)
        self._remember(picture, report)
        video_frame = VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
        ticks = round((frame.time_s - self._start_s) / _TICK_S)
        ticks = max(ticks, self._shown_ticks + 1)
        if self._shown_ticks >= 0:
            self._lasts_ticks = ticks - self._shown_ticks
        self._shown_ticks = ticks
        video_frame.pts, video_frame.time_base = ticks, _TICK_S
        self._encode(video_frame)
        self._file.raise_failure()

    def _add_stream(self, canvas: Canvas) -> VideoStream:
        from av import Codec
        from av.codec.codec import UnknownCodecError

        name: Literal["libx264", "mpeg4"] = "libx264"
        try:
            Codec(name, "w")
        except UnknownCodecError:
            name = "mpeg4"  # always there; wheels without GPL parts lack libx264
        stream = self._container.add_stream(name, options=_ENCODERS[name])
        stream.codec_context.time_base = stream.time_base = _TICK_S
        stream.width, stream.height = canvas.width_px, canvas.height_px
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = _BT601
        return stream

    def _encode(self, frame: VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            packet.duration = self._lasts_ticks  # what counts is the last one's: as the one before
            self._container.mux(packet)

    def _close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        from av.error import FFmpegError

        if error is None and self._canvas is not None:
            self._encode(None)
            self._container.close()
            self._file.raise_failure()
            return
        # The file goes away in any case: what closing says would hide the first error.
        with suppress(FFmpegError, OSError):
            self._container.close()
        if error is None:
            raise VideoError(self._path, "no frame to write", "a video of at least one frame")

    def _remember(self, picture: Image, report: FrameReport) -> None:
        if report.kind == "reference":
            if self._still_concentration < 0:
                self._still = picture
            return
        concentration = _concentration(report, self._grid)
        if concentration > self._still_concentration:
            self._still, self._still_concentration = picture, concentration

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        from av.error import FFmpegError

        try:
            yield
        except (FFmpegError, OSError) as error:
            raise VideoError(
                self._path,
                f"cannot be written ({error.strerror or error})",
                fix="check its folder and the space left, or choose another path",
            ) from error


class _UnfailingFile:
    """What PyAV writes to: it never raises, but keeps the first failure for `raise_failure`.

    PyAV before 17.1 crashes the process some time after a write of its has raised.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: OSError | None = None

    def raise_failure(self) -> None:
        """Raises the OSError of the first write that failed, if one did."""
        if self._failure is not None:
            raise self._failure

    def write(self, content: bytes) -> int:
        if self._failure is None:
            try:
                self._file.write(content)
            except OSError as failure:
                self._failure = failure
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._failure is None:
            try:
                return self._file.seek(offset, whence)
            except OSError as failure:  # a seek writes out what is buffered
                self._failure = failure
        return offset

    def tell(self) -> int:
        return 0 if self._failure else self._file.tell()


def _concentration(report: FrameReport, grid: Grid) -> float:
    """Neighbouring pairs per recomputed token: near 2 for one solid patch, 0 when scattered."""
    from stc.runtime.show.marks import marked

    cells = marked(report.recomputed - grid.prefix_tokens, grid.rows, grid.columns)
    pairs = np.sum(cells[1:] & cells[:-1]) + np.sum(cells[:, 1:] & cells[:, :-1])
    return float(pairs) / max(1, len(report.recomputed))
