"""What the camera does: it stands, pans, shakes or zooms, its picture brightens or is cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stc.scenes.chance import between, chance, pick, whole

REACH = 24
"""How many px a camera may move off its first picture, to each side."""


@dataclass(frozen=True)
class Camera:
    """`zoom` [F]; `shift` [F, 2] px its middle has moved; `gain` [F] of 256; `cut`: frame or 0."""

    zoom: tuple[float, ...]
    shift: npt.NDArray[np.int64]
    gain: tuple[int, ...]
    cut: int
    still: bool
    """Whether it neither pans nor zooms nor cuts; it may shake."""
    fixed: bool


def make_camera(random: np.random.Generator, frame_count: int, still: bool) -> Camera:
    at = 0.0 if still else random.random()
    zoom, cut = (1.0,) * frame_count, 0
    shift = np.zeros((frame_count, 2), np.int64)
    if 0.47 <= at < 0.65:
        shift = _pan(random, frame_count)
    elif 0.65 <= at < 0.80:
        steps = [[whole(random, -3, 3), whole(random, -3, 3)] for _ in range(frame_count)]
        shift = np.asarray(steps, np.int64)
    elif 0.80 <= at < 0.93:
        most = between(random, 1.1, 1.3)
        zoom = tuple(1 + (most - 1) * frame / (frame_count - 1) for frame in range(frame_count))
        zoom = zoom[::-1] if chance(random, 0.5) else zoom
    elif at >= 0.93:
        cut = whole(random, 3, frame_count - 4)
    first, last = 256, 256
    if not still and chance(random, 0.35):
        first, last = whole(random, 205, 296), whole(random, 205, 296)
    gain = tuple(
        first + (last - first) * frame // (frame_count - 1) for frame in range(frame_count)
    )
    shaken = 0.65 <= at < 0.80
    return Camera(zoom, shift, gain, cut, still=at < 0.47 or shaken, fixed=at < 0.47)


def _pan(random: np.random.Generator, frame_count: int) -> npt.NDArray[np.int64]:
    """From one side to the other, at most two px a frame."""
    far = min(REACH, frame_count - 1)
    across = pick(random, (-1, 1)) * whole(random, far // 2, far)
    down = whole(random, -far // 4, far // 4)
    steps = [
        [(2 * frame - frame_count + 1) * way // (frame_count - 1) for way in (across, down)]
        for frame in range(frame_count)
    ]
    return np.asarray(steps, np.int64)
