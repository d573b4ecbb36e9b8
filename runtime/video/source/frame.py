"""A frame: pixels with their place and time in the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.errors import VideoError
from stc.shell.ranges import real, shown, whole

LAST_INDEX = 2**53
"""Of a frame: what every reader of JSON still reads."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded frame.

    index: number of the sampled frame in its source, from 0.
    time_s: presentation time in seconds from the source's first frame.
    rgb: uint8 [height_px, width_px, 3].
    """

    index: int
    time_s: float
    rgb: NDArray[np.uint8]


def check_frame(frame: object) -> None:
    """`frame` is a Frame with a place and a time. Its pixels are for the preprocessor to judge.

    Raises VideoError unless it is.
    """
    if not isinstance(frame, Frame):
        raise VideoError(
            "frame",
            f"got {shown(frame)} of type {type(frame).__name__}",
            "a stc.runtime.Frame",
            "make one with Frame(index=0, time_s=0.0, rgb=picture)",
        )
    whole("frame.index", frame.index, least=0, most=LAST_INDEX, error=VideoError)
    expected = "a finite number of seconds, 0 or more"
    real("frame.time_s", frame.time_s, expected, least=0.0, error=VideoError)
