"""What a step of the tower's stage draws: windows of frames round things, and what each patch of
them shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.export.demo.training.codebook import shares
from stc.scenes.scene import Scene, make_scene
from stc.scenes.words import CELLS, PATCH, SIDE

SIDES = {0.0: 6, 0.5: 8, 0.9: CELLS}
"""Side of what the tower sees of a frame from each share of its training on, patches: less work,
and most of what it sees is of a thing."""
FRAMES = 3
"""Frames of a scene of which windows are cut."""
DIGITS_SHARE = 0.35
"""Of the windows that show handwriting: the hardest thing to learn, and rare in scenes."""
OUTLINE = 16
"""Cells of a patch, each of which a thing covers or does not."""
FORM, FORM_SIDE = 64, 40
"""Cells of the whole thing that a patch belongs to, over how many px."""


@dataclass(frozen=True)
class Windows:
    """pixels: uint8 [n, h, w, 3]. places: int64 [n, t], where the patches lie in the frame. truth:
    float32 [n, t, len(NAMES)], what they show. covered: float32 [n, t, OUTLINE]. whole: float32
    [n, t, FORM]."""

    pixels: NDArray[np.uint8]
    places: NDArray[np.int64]
    truth: NDArray[np.float32]
    covered: NDArray[np.float32]
    whole: NDArray[np.float32]


@dataclass(frozen=True)
class WindowDraw:
    """Draws windows of `tokens` patches together."""

    tokens: int = 2048

    def __call__(self, random: np.random.Generator, share: float) -> Windows:
        side = max(size for begin, size in SIDES.items() if share >= begin)
        count = self.tokens // side**2
        found: list[tuple[NDArray[Any], ...]] = []
        while len(found) < count:
            found += _windows(random, side)
        columns = zip(*found[:count], strict=True)
        names = (one.name for one in fields(Windows))
        return Windows(**{name: np.stack(one) for name, one in zip(names, columns, strict=True)})


def _windows(random: np.random.Generator, side: int) -> Iterator[tuple[NDArray[Any], ...]]:
    digits = random.random() < DIGITS_SHARE
    scene = _scene(random, digits)
    labels = scene.labels
    frames = random.choice(scene.frame_count, FRAMES, replace=False)
    coded = shares(labels, frames)
    for number, frame in enumerate(frames.tolist()):
        wanted = labels.owner[frame] >= 0
        if digits:
            wanted &= _digit(scene)[labels.owner[frame]]
        cells = np.argwhere(wanted)
        if not len(cells) and random.random() < 0.8:
            continue
        centre = cells[random.integers(len(cells))] if len(cells) else (7, 7)
        corner = np.array(centre) - side // 2 + random.integers(-2, 3, 2)
        row, column = np.clip(corner, 0, CELLS - side)
        down, across = slice(row, row + side), slice(column, column + side)
        rgb = scene.render(frame)
        mask = (rgb != scene.render_without(tuple(range(len(labels.things))), frame)).any(2)
        cut = (
            slice(row * PATCH, (row + side) * PATCH),
            slice(column * PATCH, (column + side) * PATCH),
        )
        places = np.arange(CELLS * CELLS).reshape(CELLS, CELLS)[down, across].ravel()
        truth = coded[number, down, across].reshape(side * side, -1)
        owners = labels.owner[frame, down, across].ravel()
        whole = forms_of(mask, labels.centre[frame])[owners]
        yield rgb[cut], places, truth, cells_of(mask[cut], side), whole


def _scene(random: np.random.Generator, digit: bool) -> Scene:
    """A scene to train on, with a digit in it where that is asked for."""
    while True:
        scene = make_scene("train", int(random.integers(1 << 40)))
        if not digit or any(_digit(scene)):
            return scene


def _digit(scene: Scene) -> NDArray[np.bool_]:
    """Which things are digits."""
    return np.array([thing.kind == "digit" for thing in scene.plan.things], bool)


def cells_of(covered: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """[side * 8, side * 8] px -> the share covered of each cell of every patch, [side**2, 16]."""
    fine = int(OUTLINE**0.5)
    step = PATCH // fine
    parts = covered.reshape(side, fine, step, side, fine, step)
    shares: NDArray[np.float32] = parts.mean((2, 5), dtype=np.float32)
    found: NDArray[np.float32] = shares.transpose(0, 2, 1, 3).reshape(side * side, OUTLINE)
    return found


def forms_of(covered: NDArray[np.bool_], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is covered round each centre, [K + 1, FORM]: FORM_SIDE px as 8 x 8 cells. The last is
    nobody's."""
    half, step = FORM_SIDE // 2, FORM_SIDE // 8
    padded = np.pad(covered, half)
    found = np.zeros((len(centres) + 1, FORM), np.float32)
    for number, (x, y) in enumerate(np.clip(np.rint(centres).astype(int), 0, SIDE - 1)):
        part = padded[y : y + FORM_SIDE, x : x + FORM_SIDE]
        found[number] = part.reshape(8, step, 8, step).mean((1, 3)).ravel()
    return found
