"""What is behind the things: places, gradients, noise and textures, each split with its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

from stc.scenes import store
from stc.scenes.chance import between, chance, generator, pick, whole
from stc.scenes.stage.camera import REACH
from stc.scenes.store import Split
from stc.scenes.words import SIDE

WIDE = SIDE + 2 * REACH
"""Pixels of a background's sides, so that a camera may move over it."""

Colours = npt.NDArray[np.int32]
Texture = Callable[[np.random.Generator], npt.NDArray[np.int32]]


@cache
def _steps() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    steps = np.arange(WIDE, dtype=np.int32)
    return steps[:, None], steps[None, :]


def background(split: Split, seed: int, part: int, light: bool) -> npt.NDArray[np.uint8]:
    """uint8 [160, 160, 3]; `part` tells the pictures before and after a cut.

    A `light` one has no dark regions, against which persons in black could not be seen.
    """
    random = generator(store.SPLITS.index(split), seed, 2, part)
    at = random.random()
    if at < 0.4:
        return _place(random, split, light)
    mixed = _clouds(random) if at < 0.6 else pick(random, TEXTURES[split])(random)
    return _between_colours(random, mixed, light)


def _place(random: np.random.Generator, split: Split, light: bool) -> npt.NDArray[np.uint8]:
    held = store.places(split)
    street = chance(random, 0.75) or light
    picture = held[0] if street else pick(random, held[1:])
    size = whole(random, 84, min(picture.shape[0], picture.shape[1], 2 * WIDE))
    top = whole(random, 0, picture.shape[0] - size)
    left = whole(random, 0, picture.shape[1] - size)
    out = _resized(picture[top : top + size, left : left + size])
    out = out[:, ::-1] if chance(random, 0.5) else out
    bright = whole(random, 215 if light else 170, 262) if street else whole(random, 256, 420)
    gain = np.asarray([bright + whole(random, -14, 14) for _ in range(3)], np.int32)
    return np.asarray(np.minimum(out * gain // 256, 255), np.uint8)


def _resized(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """A square picture as [160, 160, 3], in integers, linear between its pixels."""
    size = len(picture)
    at = np.arange(WIDE) * ((size - 1) * 64) // WIDE
    low, past = at // 64, (at % 64).astype(np.int32)
    held = picture.astype(np.int32)
    rows = held[low] * (64 - past)[:, None, None] + held[low + 1] * past[:, None, None]
    past = past[:, None]
    both = rows[:, low] * (64 - past) + rows[:, low + 1] * past
    return np.asarray(both // 4096, np.int32)


def _between_colours(
    random: np.random.Generator, mixed: npt.NDArray[np.int32], light: bool
) -> npt.NDArray[np.uint8]:
    """Two muted colours, mixed by 0..256."""
    first, second = _muted(random, light), _muted(random, light)
    return (first + (((second - first) * mixed[..., None]) >> 8)).astype(np.uint8)


def _muted(random: np.random.Generator, light: bool) -> Colours:
    grey = whole(random, 100 if light else 30, 205)
    return np.asarray([grey + whole(random, -26, 26) for _ in range(3)], np.int32)


def _clouds(random: np.random.Generator) -> npt.NDArray[np.int32]:
    """Value noise: random levels on two lattices, linear between their points."""
    out = np.zeros((WIDE, WIDE), np.int32)
    for weight, cell in ((170, pick(random, (20, 32, 40))), (86, pick(random, (5, 8, 10)))):
        count = WIDE // cell + 2
        levels = random.integers(0, 257, (count, count)).astype(np.int32)
        steps = np.arange(WIDE, dtype=np.int32)
        low, past = steps // cell, steps % cell
        rows = levels[low] * (cell - past)[:, None] + levels[low + 1] * past[:, None]
        both = rows[:, low] * (cell - past) + rows[:, low + 1] * past
        out += np.asarray((both * weight) // (256 * cell * cell), np.int32)
    return out


def _slope(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    down, across = pick(random, ((1, 0), (0, 1), (2, 1), (1, 2)))
    mixed = (y * down + x * across) * 256 // ((WIDE - 1) * (down + across))
    return 256 - mixed if chance(random, 0.5) else mixed + 0


def _stripes(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    down, across = pick(random, ((1, 0), (0, 1)))
    period = whole(random, 6, 24)
    return ((y * down + x * across) // period % 2) * whole(random, 60, 160) + 0 * x * y


def _checks(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    period = whole(random, 6, 24)
    return (y // period + x // period) % 2 * whole(random, 50, 130)


def _blocks(random: np.random.Generator) -> npt.NDArray[np.int32]:
    cell = pick(random, (16, 20, 32, 40))
    levels = random.integers(0, 200, (WIDE // cell, WIDE // cell)).astype(np.int32)
    return np.repeat(np.repeat(levels, cell, axis=0), cell, axis=1)


def _bricks(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    high = whole(random, 9, 16)
    row = y // high
    column = (x + row % 2 * high) // (2 * high)
    joint = (y % high == 0) | ((x + row % 2 * high) % (2 * high) == 0)
    levels = (row * 7 + column * 13) % 5 * 24
    return np.where(joint, 220, levels).astype(np.int32)


def _rings(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    top, left, period = whole(random, 0, WIDE), whole(random, 0, WIDE), whole(random, 300, 1500)
    far = (y - top) * (y - top) + (x - left) * (x - left)
    return far // period % 4 * whole(random, 30, 60)


def _weave(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    cell = whole(random, 5, 12)
    along = (y // cell + x // cell) % 2 == 0
    thread = np.where(along, y % cell, x % cell)
    return (thread * 200 // cell).astype(np.int32)


def _lozenges(random: np.random.Generator) -> npt.NDArray[np.int32]:
    y, x = _steps()
    period = whole(random, 12, 30)
    return ((y + x) // period + (y - x + WIDE) // period) % 2 * int(between(random, 50, 130))


TEXTURES: dict[Split, tuple[Texture, ...]] = {
    "train": (_slope, _slope, _stripes, _checks, _blocks),
    "validation": (_lozenges,),
    "test": (_bricks, _rings, _weave),
}
"""The textures of each split, which no other has."""
