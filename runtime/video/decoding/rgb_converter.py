"""A converter: decoded pictures into RGB pixels. Imports PyAV; see `stc.runtime.video.open`."""

from __future__ import annotations

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from stc.runtime.video.decoding.upright import display_matrix, upright

_RGB, _BT601, _BT2020, _BT2020_CONSTANT = 0, 5, 9, 10
_CONVERTIBLE = frozenset({1, 2, 4, _BT601, 6, 7, _BT2020})
"""AVColorSpace of BT.709, unspecified (taken as BT.601), FCC, BT.601 twice, SMPTE 240M and BT.2020:
what every version of swscale converts."""
_ALWAYS_FULL = ("yuvj", "gray", "ya")
"""How formats begin that have one range, whatever a tag says."""


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
