"""What things look like: shapes, persons, digits and dots as small pictures with alpha."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Ink: TypeAlias = tuple[int, int, int]

RIM_PX = 1.5
PERSON_PX = 40
"""Rows of a person's picture."""
_STAR = ((0.0, -1.0), (0.9510565, -0.3090170), (0.5877853, 0.8090170))
"""Directions of a star's points; the other two are mirrored."""


@dataclass(frozen=True)
class Look:
    """How one thing looks; `size_px` is its height, `turn` cosine and sine of its rotation.

    `image` is a person's RGBA [40, 24, 4] or a digit's [8, 8]; shapes have none.
    """

    kind: str
    size_px: int
    ink: Ink
    rim: Ink
    turn: tuple[float, float] = (1.0, 0.0)
    image: Pixels | None = None


def drawn(look: Look, zoom: float = 1.0) -> Pixels:
    """The thing as uint8 [n, n, 4] RGBA, n even, its centre in the middle."""
    n = 2 * int(look.size_px * zoom * 0.5 + 3)
    y, x = _grid(n)
    if look.kind == "person":
        return _person(look, x, y, zoom)
    if look.kind == "digit":
        return _digit(look, x, y, zoom)
    return _shape(look, x, y, zoom)


def body(picture: Pixels) -> npt.NDArray[np.bool_]:
    """Which pixels of a drawn thing are its own."""
    return np.asarray(picture[..., 3] >= 128)


@cache
def _grid(n: int) -> tuple[Floats, Floats]:
    """Rows [n, 1] and columns [1, n] of pixels' middles, in px from the centre."""
    steps = np.arange(n, dtype=np.float32) + np.float32(0.5 - n / 2)
    return steps[:, None], steps[None, :]


def _shape(look: Look, x: Floats, y: Floats, zoom: float) -> Pixels:
    cosine, sine = np.float32(look.turn[0]), np.float32(look.turn[1])
    half = np.float32(look.size_px * zoom / 2)
    if look.kind == "triangle":
        across, down = _turned_middle(*look.turn)
        x, y = x + np.float32(across) * half, y + np.float32(down) * half
    far = _outside(look.kind, cosine * x + sine * y, cosine * y - sine * x, half)
    alpha = np.clip(np.float32(0.5) - far, 0, 1)
    wide = RIM_PX * zoom * (0.6 if look.kind == "dot" else 1)
    rim = np.clip(far + np.float32(wide + 0.5), 0, 1)
    return _inked(look.ink, look.rim, rim, alpha)


def _inked(ink: Ink, rim: Ink, share: Floats, alpha: Floats) -> Pixels:
    """`ink`, with `share` of `rim` in it."""
    out = np.empty((*alpha.shape, 4), np.uint8)
    for channel in range(3):
        low, high = ink[channel], rim[channel]
        out[..., channel] = np.float32(low) + share * np.float32(high - low)
    out[..., 3] = alpha * np.float32(255)
    return out


def _outside(kind: str, x: Floats, y: Floats, half: np.float32) -> Floats:
    """About how many px a point lies outside of a shape; below zero inside. Boxes are centred."""
    if kind in ("circle", "dot"):
        return np.asarray(np.sqrt(x * x + y * y) - half)
    if kind == "square":
        return np.asarray(np.maximum(abs(x), abs(y)) - np.float32(0.9) * half)
    if kind == "cross":
        thin = np.float32(0.36) * half
        one = np.maximum(abs(x) - half, abs(y) - thin)
        return np.asarray(np.minimum(one, np.maximum(abs(x) - thin, abs(y) - half)))
    return _triangle(x, y, half) if kind == "triangle" else _star(x, y, half)


def _triangle(x: Floats, y: Floats, half: np.float32) -> Floats:
    reach = np.float32(1.2) * half
    y = y - np.float32(0.25) * reach
    flank = np.float32(0.8660254) * abs(x) - np.float32(0.5) * y
    return np.asarray(np.maximum(y, flank) - np.float32(0.5) * reach)


def _turned_middle(cosine: float, sine: float) -> tuple[float, float]:
    """Where the middle of a turned triangle's box is, in halves of its height."""
    corners = [(0.0, -0.9), (1.0392305, 0.9), (-1.0392305, 0.9)]
    across = [cosine * x - sine * y for x, y in corners]
    down = [sine * x + cosine * y for x, y in corners]
    return (min(across) + max(across)) / 2, (min(down) + max(down)) / 2


def _star(x: Floats, y: Floats, half: np.float32) -> Floats:
    reach = np.float32(1.08) * half
    y = y - np.float32(0.095) * reach
    sides = [np.float32(_STAR[0][1]) * y + 0 * x]
    for along, down in _STAR[1:]:
        sides += [np.float32(along) * x + np.float32(down) * y]
        sides += [np.float32(-along) * x + np.float32(down) * y]
    second = np.sort(np.stack(sides), axis=0)[-2] - np.float32(0.309017) * reach
    core = np.sqrt(x * x + y * y) - np.float32(0.5) * reach
    return np.asarray(np.minimum(second, core))


def _person(look: Look, x: Floats, y: Floats, zoom: float) -> Pixels:
    assert look.image is not None
    scale = look.size_px * zoom / PERSON_PX
    image = look.image
    if scale < 0.7:
        image, scale = _halved(image), scale * 2
    alpha = image[..., 3:].astype(np.float32)
    held = np.concatenate([image[..., :3] * (alpha / np.float32(255)), alpha], axis=2)
    found = _sampled(held, x, y, scale)
    out = np.empty(found.shape, np.uint8)
    share = np.maximum(found[..., 3:], np.float32(1)) / np.float32(255)
    out[..., :3] = np.clip(found[..., :3] / share, 0, 255)
    out[..., 3] = found[..., 3]
    return out


def _halved(image: Pixels) -> Pixels:
    """Half as high and wide, each pixel the mean of four, weighted by alpha."""
    wide = image.astype(np.int32)
    alpha = wide[..., 3:]
    four = [(row, column) for row in (0, 1) for column in (0, 1)]
    total = np.add.reduce([alpha[r::2, c::2] for r, c in four])
    inks = np.add.reduce([(wide[..., :3] * alpha)[r::2, c::2] for r, c in four])
    return np.concatenate([inks // np.maximum(total, 1), total // 4], axis=2).astype(np.uint8)


def _digit(look: Look, x: Floats, y: Floats, zoom: float) -> Pixels:
    assert look.image is not None
    scale = look.size_px * zoom / 8
    down, across = (_middle(look.image.max(axis)) * scale for axis in (1, 0))
    x, y = x + np.float32(across), y + np.float32(down)
    ink = _sampled(look.image[..., None].astype(np.float32), x, y, scale)[..., 0]
    alpha = np.clip((ink - np.float32(1.5)) / np.float32(2.5), 0, 1)
    rim = np.clip((np.float32(10.5) - ink) / np.float32(3), 0, 1)
    return _inked(look.ink, look.rim, rim, alpha)


def _middle(levels: Pixels) -> float:
    """How far the middle of the ink lies from the middle of the paper, in pixels of the image."""
    inked = np.flatnonzero(levels >= 4)
    return (int(inked[0]) + int(inked[-1]) + 1 - len(levels)) / 2


def _sampled(image: Floats, x: Floats, y: Floats, scale: float) -> Floats:
    """`image` [h, w, c] drawn `scale` times as large round the centre, zero outside; bilinear."""
    high, wide, _ = image.shape
    held = np.zeros((high + 4, wide + 4, image.shape[2]), np.float32)
    held[2:-2, 2:-2] = image
    down, low_row = _between(y[:, 0], scale, high)
    across, low_column = _between(x[0], scale, wide)
    rows = held[low_row] + (held[low_row + 1] - held[low_row]) * down[:, None, None]
    left, right = rows[:, low_column], rows[:, low_column + 1]
    return np.asarray(left + (right - left) * across[None, :, None])


def _between(steps: Floats, scale: float, count: int) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Where each step falls in an image padded by two: the share past a pixel, and that pixel."""
    at = steps / np.float32(scale) + np.float32(count / 2 + 1.5)
    at = np.clip(at, 0, count + 2.5).astype(np.float32)
    low = np.floor(at)
    return at - low, low.astype(np.intp)
