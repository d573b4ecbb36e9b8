"""Where a thing goes: it stands, comes, stops, passes or leaves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stc.scenes.chance import between, chance, pick, shuffled, whole
from stc.scenes.stage.bodies import Look
from stc.scenes.stage.camera import REACH, Camera
from stc.scenes.words import SIDE

Places = npt.NDArray[np.int64]
Stop = tuple[float, float, float]
"""A frame with x and y in px."""

STILL_FRAMES = 8
"""Frames at the end of a still scene in which nothing moves."""


def path_of(
    random: np.random.Generator,
    look: Look,
    camera: Camera,
    still: bool,
    lane: tuple[int, int],
    others: Places,
) -> Places:
    """Its centre in every frame, [F, 2] px, before the camera moves."""
    frame_count = len(camera.zoom)
    away = SIDE / 2 + look.size_px * 0.62 + 3 + _camera_reach(camera)
    upright = look.kind != "person" and chance(random, 0.5)
    spot = (
        _spot_of_dot(random, others) if look.kind == "dot" else _spot(random, look, lane, upright)
    )
    deed = _deed(random, look, still)
    if camera.cut:
        deed = "stand"
    stops = _stops(random, deed, spot, away, upright, frame_count - STILL_FRAMES * still)
    return np.asarray([_at(stops, frame) for frame in range(frame_count)], np.int64)


def present_of(
    random: np.random.Generator, look: Look, camera: Camera, frame_count: int, still: bool
) -> npt.NDArray[np.bool_]:
    """In which frames it exists at all, [F]: a dot may come and go, a cut changes what there is."""
    there = np.ones(frame_count, np.bool_)
    if camera.cut:
        there[:] = False
        there[slice(camera.cut) if chance(random, 0.5) else slice(camera.cut, None)] = True
    elif look.kind == "dot" and chance(random, 0.6):
        first = whole(random, 1, frame_count - 3)
        last = frame_count if chance(random, 0.6) else first + whole(random, 3, 6)
        there[:first] = False
        there[last:] = False
    return there


def _camera_reach(camera: Camera) -> int:
    if camera.fixed:
        return 0
    return min(REACH, int(abs(camera.shift).max())) + 1


def _deed(random: np.random.Generator, look: Look, still: bool) -> str:
    if look.kind == "dot":
        return "pass" if not still and chance(random, 0.25) else "stand"
    if still:
        return "come" if chance(random, 0.35) else "stand"
    at = random.random()
    chances = ((0.17, "stand"), (0.42, "come"), (0.63, "pass"), (0.84, "leave"))
    return next((deed for share, deed in chances if at < share), "visit")


def _spot(
    random: np.random.Generator, look: Look, lane: tuple[int, int], upright: bool
) -> tuple[float, float]:
    """Where it stops: any third across; its own lane down, so that few stand in another's way."""
    half = look.size_px / 2 + 1
    third = whole(random, 0, 2)
    across = between(random, max(half, 37.4 * third + 6), min(SIDE - half, 37.3 * third + 31.4))
    number, count = lane
    high = (SIDE - 2 * half) / count
    down = half + high * (number + random.random())
    return across, down


def _spot_of_dot(random: np.random.Generator, others: Places) -> tuple[float, float]:
    """The farthest of five places from where the others stand at last."""
    left = 37.3 * whole(random, 0, 2)
    tried = [(left + between(random, 6, 31), between(random, 6, SIDE - 6)) for _ in range(5)]

    def room(spot: tuple[float, float]) -> float:
        return min(
            (max(abs(spot[0] - float(x)), abs(spot[1] - float(y))) for x, y in others), default=0.0
        )

    return max(tried, key=room)


def _stops(
    random: np.random.Generator,
    deed: str,
    spot: tuple[float, float],
    away: float,
    upright: bool,
    frame_count: int,
) -> list[Stop]:
    """Where it is when; between them it goes straight on."""
    x, y = spot
    sides = shuffled(random, (-1, 1))
    ends = [
        (x, SIDE / 2 + side * away) if upright else (SIDE / 2 + side * away, y) for side in sides
    ]
    far = [abs(end_x - x) + abs(end_y - y) for end_x, end_y in ends]
    speed = between(random, 7, 17)
    if deed == "stand":
        return [(0, x, y)]
    if deed == "leave":
        start = whole(random, 2, max(2, frame_count // 3))
        return [(start, x, y), (start + far[0] / speed, *ends[0])]
    if deed == "pass":
        start = whole(random, 0, max(1, frame_count // 3))
        return [(start, *ends[0]), (start + (far[0] + far[1]) / speed, *ends[1])]
    speed = max(speed, far[0] / max(2, frame_count - 2))
    start = whole(random, 0, max(0, min(frame_count // 2, int(frame_count - 2 - far[0] / speed))))
    there = start + far[0] / speed
    if deed == "come":
        return [(start, *ends[0]), (int(there) + 1, x, y)]
    gone = int(there) + whole(random, 2, 5)
    side = pick(random, (0, 1, 1))
    return [
        (start, *ends[0]),
        (int(there) + 1, x, y),
        (gone, x, y),
        (gone + far[side] / max(8.0, speed), *ends[side]),
    ]


def _at(stops: list[Stop], frame: int) -> tuple[int, int]:
    before = [stop for stop in stops if stop[0] <= frame]
    after = [stop for stop in stops if stop[0] > frame]
    if not before or not after:
        _, x, y = (before or after[:1])[-1]
    else:
        first, second = before[-1], after[0]
        share = (frame - first[0]) / (second[0] - first[0])
        x, y = (first[i] + (second[i] - first[i]) * share for i in (1, 2))
    return int(x + 1000.5) - 1000, int(y + 1000.5) - 1000
