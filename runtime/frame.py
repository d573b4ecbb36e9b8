"""A frame: pixels with their place and time in the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
