"""A decoder: the pictures of one open container, upright and in RGB. Imports PyAV."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stc.errors import VideoError

LONGEST_DAMAGE = 16
"""Unreadable places in a row after which the rest of a container counts as lost."""
USUAL_RATE = 25.0
"""Frames per second assumed of a source that declares none and stamps no frame."""

_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
"""Pictures beside a film or music: covers, and those of chapters."""
_BESIDE = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.still_image
    | Disposition.dependent
)
"""Streams that accompany the main one."""
_KINDS = {"video": "a cover picture"}
_RGB, _BT601, _BT2020, _BT2020_CONSTANT = 0, 5, 9, 10
_CONVERTIBLE = frozenset({1, 2, 4, _BT601, 6, 7, _BT2020})
"""AVColorSpace of BT.709, unspecified (taken as BT.601), FCC, BT.601 twice, SMPTE 240M and BT.2020:
what every version of swscale converts."""
_ALWAYS_FULL = ("yuvj", "gray", "ya")
"""How formats begin that have one range, whatever a tag says."""
_MATRIX = "DISPLAYMATRIX"
_SIDE_DATA_TYPES = range(64)
"""More than libav has; those PyAV has no name for are taken away before it lists the others."""

Matrix = tuple[int, int, int, int]
"""a, b, c, d in any one unit: the pixel at (x, y) is shown at (a x + c y, b x + d y), y down."""


class Decoder:
    """Pictures of the video stream of `container` that is meant to be seen; owns the container.

    rate: frames per second, None if not declared. period_s: time between frames, estimated.
    tick_s: unit of the stamps.
    frames: how many there should be, estimated, None if unknown. frames_counted: the same where
        the container counts them, None where it does not.
    borrows: whether pictures lie in the container's own buffers, a camera's for example, which are
        gone when it is closed; other pictures outlive it.
    notice: which of several video streams is read, one line; None where there is one.
    gave_up: whether the rest of the container was unreadable.

    Raises VideoError, with the container closed, when there is no video stream to decode.
    """

    def __init__(self, container: InputContainer, name: str) -> None:
        self._container = container
        try:
            self._stream, self.notice = _chosen_stream(container, name)
        except VideoError:
            container.close()
            raise
        # Keeps its tables as long as size and format of the pictures stay.
        self._reformatter = VideoReformatter()
        self.borrows = self._stream.codec_context.name == "rawvideo"
        tick = self._stream.time_base
        self.tick_s = float(tick) if tick else 0.0
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = float(rate) if rate else None
        self.period_s = 1 / (self.rate or USUAL_RATE)
        self.frames_counted = self._stream.frames or None
        self.frames = self.frames_counted or self._estimated_frames()
        self.gave_up = False
        self.last_error: FFmpegError | None = None

    def decode_in_parallel(self) -> None:
        """Pictures are decoded several at a time; call before the first.

        Worth it where most pictures are thrown away. Not the default, because a damaged picture
        among the last may then hide those behind it, as many as there are CPU cores.
        """
        self._stream.thread_type = "AUTO"

    def pictures(self) -> Iterator[VideoFrame | None]:
        """Each picture in presentation order; None for a picture that could not be decoded.

        Damage the decoder can conceal is not told apart. Raises FFmpegError when the container
        cannot be read on.
        """
        packets = self._container.demux(self._stream)
        damage = 0
        while damage < LONGEST_DAMAGE:
            try:
                packet = next(packets, None)
            except InvalidDataError as error:
                # The error ends the generator, not the container: a new one reads on behind it.
                packets = self._container.demux(self._stream)
                damage += 1
                self.last_error = error
                yield None
                continue
            if packet is None:
                return
            damage = 0
            try:
                pictures = packet.decode()
            except FFmpegError as error:
                self.last_error = error
                yield None
                continue
            yield from pictures
        self.gave_up = True
        yield from self._stream.codec_context.decode(None)

    def stamp_s(self, picture: VideoFrame) -> float | None:
        """The picture's stamp in seconds, from an arbitrary zero; None if it has none."""
        return None if picture.pts is None else picture.pts * self.tick_s

    def rgb(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """The picture upright: uint8 [height_px, width_px, 3], contiguous, the caller's own.

        The colour matrix and the range are the picture's own. What it does not say is what ffmpeg
        assumes, BT.601 in limited range; a matrix that swscale lacks is read as BT.601, too.
        """
        if picture.colorspace not in _CONVERTIBLE:
            constant = picture.colorspace == _BT2020_CONSTANT
            picture.colorspace = _BT2020 if constant else _BT601
        # PyAV before 17 takes no range from the picture, and both only for a target that differs:
        # naming RGB as the target's matrix makes it one.
        converted = self._reformatter.reformat(
            picture,
            format="rgb24",
            dst_colorspace=_RGB,
            src_color_range=_range(picture),
            dst_color_range=ColorRange.JPEG,
        )
        pixels = np.asarray(converted.to_ndarray(), dtype=np.uint8)
        matrix = _display_matrix(picture)
        if matrix is not None:
            # Phones film in the sensor's orientation and note how to turn the picture.
            pixels = upright(pixels, matrix)
        if converted is picture:
            # Already RGB: the pixels may lie in a camera's own buffer, which is used again.
            return np.array(pixels, order="C")
        return np.ascontiguousarray(pixels)

    def close(self) -> None:
        """The container is released."""
        self._container.close()

    def _estimated_frames(self) -> int | None:
        seconds = 0.0
        if self._stream.duration:
            seconds = self._stream.duration * self.tick_s
        elif self._container.duration:
            seconds = self._container.duration / av.time_base
        return round(seconds * self.rate) if seconds > 0 and self.rate else None


def _chosen_stream(container: InputContainer, name: str) -> tuple[VideoStream, str | None]:
    """The video stream a viewer would see, and one line about the choice, None without one.

    Of those that can be decoded and are no mere covers: one whose size is known, that is no
    accompaniment, marked as the default, the largest, the first; the earlier counts for more.

    Raises VideoError when there is none.
    """
    if len(container.streams) == 0:
        raise VideoError(
            name,
            "holds no streams; it was cut off, or never finished",
            fix="copy or record it again",
        )
    streams = [s for s in container.streams.video if not s.disposition & _NO_VIDEO]
    if not streams:
        kinds = sorted({_KINDS.get(stream.type, stream.type) for stream in container.streams})
        raise VideoError(
            name, f"has no video, only {' and '.join(kinds)}", "a video stream", "name another file"
        )
    # PyAV knows no codec context, nor the size in it, where libav has no decoder.
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(
            name,
            "no decoder for its video codec",
            "one PyAV has",
            "write it again: ffmpeg -c:v libx264",
        )
    chosen = max(decodable, key=_rank)
    if len(streams) == 1:
        return chosen, None
    size = f"{chosen.codec_context.width}x{chosen.codec_context.height}"
    return chosen, f"{name}: {len(streams)} video streams; number {chosen.index}, {size}, is read"


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    area_px = stream.codec_context.width * stream.codec_context.height
    kind = stream.disposition
    return area_px > 0, not kind & _BESIDE, bool(kind & Disposition.default), area_px


def _range(picture: VideoFrame) -> ColorRange:
    if picture.format.name.startswith(_ALWAYS_FULL):
        return ColorRange.JPEG
    return ColorRange(picture.color_range or ColorRange.MPEG)


def _display_matrix(picture: VideoFrame) -> Matrix | None:
    """How the picture is to be shown, by its container, codec or EXIF; None where none says."""
    try:
        found = _matrix_bytes(picture)
    except ValueError:
        # One kind that PyAV has no name for, EXIF for example, hides all the others.
        found = _matrix_bytes(_without_unnamed(picture))
    if found is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", found)
    return a, b, c, d


def upright(pixels: NDArray[np.uint8], matrix: Matrix) -> NDArray[np.uint8]:
    """`pixels`, uint8 [height_px, width_px, 3], as they are to be shown; may be a view of them.

    As ffmpeg turns them: exactly for the eight orientations, whatever the scale. By any other angle
    the picture is turned, in whole degrees, within its own size, black where it does not reach.
    A matrix that maps all pixels onto a line or a point leaves them as they lie.
    """
    a, b, c, d = matrix
    across, down = math.hypot(a, c), math.hypot(b, d)
    if across == 0 or down == 0:
        return pixels
    clockwise = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if clockwise == 0:
        return pixels[::-1] if d < 0 else pixels
    if clockwise == 90:
        return pixels.swapaxes(0, 1) if c > 0 else np.rot90(pixels, -1)
    if clockwise == 180:
        return pixels[:: -1 if d < 0 else 1, ::-1]
    if clockwise == 270:
        return pixels[::-1, ::-1].swapaxes(0, 1) if c < 0 else np.rot90(pixels)
    from PIL import Image

    turned = Image.fromarray(pixels).rotate(-clockwise, Image.Resampling.BILINEAR)
    return np.array(turned)


def _matrix_bytes(picture: VideoFrame) -> bytes | None:
    side_data: Any = picture.side_data
    found = side_data.get(_MATRIX)
    return None if found is None else bytes(found)


def _without_unnamed(picture: VideoFrame) -> VideoFrame:
    """The picture without the side data that PyAV has no name for."""
    graph = Graph()
    last = graph.add_buffer(
        width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1)
    )
    named: set[Any] = {kind.value for kind in Type}
    for kind in _SIDE_DATA_TYPES:
        if kind not in named:
            deletion = graph.add("sidedata", f"mode=delete:type={kind}")
            last.link_to(deletion)
            last = deletion
    last.link_to(graph.add("buffersink"))
    graph.configure()
    graph.vpush(picture)
    return graph.vpull()
