"""Decoded pictures into upright RGB pixels. Imports PyAV, and Pillow for an odd angle only."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

_RGB, _BT601, _BT2020, _BT2020_CONSTANT = 0, 5, 9, 10
_CONVERTIBLE = frozenset({1, 2, 4, _BT601, 6, 7, _BT2020})
"""AVColorSpace of BT.709, unspecified (taken as BT.601), FCC, BT.601 twice, SMPTE 240M and BT.2020:
what every version of swscale converts."""
_ALWAYS_FULL = ("yuvj", "gray", "ya")
"""How formats begin that have one range, whatever a tag says."""

Matrix = tuple[int, int, int, int]
"""a, b, c, d in any one unit: the pixel at (x, y) is shown at (a x + c y, b x + d y), y down."""

_MATRIX = "DISPLAYMATRIX"
_SIDE_DATA_TYPES = range(64)
"""More than libav has; those PyAV has no name for are taken away before it lists the others."""


class RgbConverter:
    """Converts pictures of one stream; keeps its tables as long as their size and format stay.

    The colour matrix and the range are the picture's own. What it does not say is what ffmpeg
    assumes, BT.601 in limited range; a matrix that swscale lacks is read as BT.601, too.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, picture: VideoFrame) -> NDArray[np.uint8]:
        """The picture upright: uint8 [height_px, width_px, 3], contiguous, the caller's own."""
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
        matrix = display_matrix(picture)
        if matrix is not None:
            # Phones film in the sensor's orientation and note how to turn the picture.
            pixels = upright(pixels, matrix)
        if converted is picture:
            # Already RGB: the pixels may lie in a camera's own buffer, which is used again.
            return np.array(pixels, order="C")
        return np.ascontiguousarray(pixels)


def _range(picture: VideoFrame) -> ColorRange:
    if picture.format.name.startswith(_ALWAYS_FULL):
        return ColorRange.JPEG
    return ColorRange(picture.color_range or ColorRange.MPEG)


def display_matrix(picture: VideoFrame) -> Matrix | None:
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
