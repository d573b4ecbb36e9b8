"""A frame sampler: which frames of a source are taken at a lower rate."""

from __future__ import annotations

import math

from stc.shell.ranges import real

FINEST_ROUNDING_S = 1e-6
COARSEST_ROUNDING_S = 1e-3
"""Cameras stamp to the microsecond, Matroska and FLV to the millisecond."""


class FrameSampler:
    """Takes, for each target time k/fps, the first frame that is not earlier.

    A frame is taken at most once, so a rate above the source's takes every frame once.
    fps: frames per second, or None for every frame.
    tick_s: the source's unit of time. Stamps are rounded to it, so a frame that is early by less
        than a tick (or a millisecond) counts as on time.

    Raises SettingsError naming --fps when fps is not a positive finite number.
    """

    def __init__(self, fps: float | None, tick_s: float) -> None:
        if fps is not None:
            fps = real("--fps", fps, "a finite number above 0", above=0)
        self._slack_s = min(max(tick_s, FINEST_ROUNDING_S), COARSEST_ROUNDING_S)
        # Targets closer together than the rounding tell no two frames apart.
        self._fps = None if fps is None or fps * self._slack_s >= 1 else fps
        self._next = 0

    def takes(self, time_s: float) -> bool:
        """Whether the frame at `time_s` is taken; call once per frame, times never decreasing."""
        if self._fps is None:
            return True
        time_s += self._slack_s
        if time_s < self._next / self._fps:
            return False
        self._next = math.floor(time_s * self._fps) + 1
        return True


def expected_frames(frames: int | None, rate: float | None, fps: float | None) -> int | None:
    """How many of `frames` at `rate` per second a FrameSampler of `fps` takes; None if unknown."""
    if frames is None or fps is None:
        return frames
    if rate is None:
        return None
    if fps >= rate:
        return frames
    return min(frames, math.ceil(round(frames / rate * fps, 6)))
