"""What the tower learns to say of each patch: one orthogonal code for every colour, kind, digit and
place, summed over what is there.

The language model's words start from the same codes, so that both sides speak of the same things
before they meet.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stc.scenes.labels import Labels
from stc.scenes.words import CELLS, COLOURS, DIGITS, KINDS, PATCH

BINS = 14
"""Places along each axis, as many as patches: movement shows in steps of a few px."""
NORM = 4.0
"""Length of a code: a token that says five of them has elements of about 0.8."""

NAMES = (
    *COLOURS,
    *KINDS,
    *DIGITS,
    "occupied",
    "background",
    *(f"x{place}" for place in range(BINS)),
    *(f"y{place}" for place in range(BINS)),
)
COLOUR = slice(0, len(COLOURS))
KIND = slice(COLOUR.stop, COLOUR.stop + len(KINDS))
DIGIT = slice(KIND.stop, KIND.stop + len(DIGITS))
OCCUPIED, BACKGROUND = DIGIT.stop, DIGIT.stop + 1
ACROSS = slice(BACKGROUND + 1, BACKGROUND + 1 + BINS)
DOWN = slice(ACROSS.stop, ACROSS.stop + BINS)


class Codebook:
    """The codes, float32 [len(NAMES), D], orthogonal, of length NORM, made from `seed`."""

    def __init__(self, width: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(width, width, generator=generator)
        self.codes: Tensor = torch.linalg.qr(noise).Q[: len(NAMES)].contiguous() * NORM

    @cached_property
    def transposed(self) -> Tensor:
        """What reads features [.., D] back as shares of the codes [.., len(NAMES)]."""
        back: Tensor = (self.codes / NORM**2).T
        return back.contiguous()

    def of(self, name: str) -> Tensor:
        """The code [D] of `name`."""
        code: Tensor = self.codes[NAMES.index(name)]
        return code


def shares(labels: Labels, of: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """The share of every code in every patch, float32 [F, 14, 14, len(NAMES)]; of those frames
    only whose numbers are in `of`, where it is given.

    A patch that a thing covers says what the thing is and where its centre lies; any other says
    that it is background, and where it lies itself.
    """
    owner = labels.owner if of is None else labels.owner[of]
    centre = labels.centre if of is None else labels.centre[of]
    frames = len(owner)
    table = np.zeros((frames, len(labels.things) + 1, len(NAMES)), np.float32)
    for index, thing in enumerate(labels.things):
        row = table[:, index]
        if thing.colour is not None:
            row[:, COLOUR.start + list(COLOURS).index(thing.colour)] = 1.0
        row[:, KIND.start + KINDS.index(thing.kind)] = 1.0
        if thing.digit is not None:
            row[:, DIGIT.start + thing.digit] = 1.0
        row[:, OCCUPIED] = 1.0
        row[:, ACROSS] = _soft(centre[:, index, 0])
        row[:, DOWN] = _soft(centre[:, index, 1])
    table[:, -1, BACKGROUND] = 1.0  # owner -1 is the last
    found: NDArray[np.float32] = table[np.arange(frames)[:, None, None], owner]
    own = _soft(PATCH * (np.arange(CELLS) + 0.5))
    empty = (owner < 0)[..., None]
    found[..., ACROSS] = np.where(empty, own[None, None, :, :], found[..., ACROSS])
    found[..., DOWN] = np.where(empty, own[None, :, None, :], found[..., DOWN])
    return found


def pooled(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """[F, 14, 14, N] -> [F, 49, N], as the model pools tokens."""
    frames, rows, columns, width = patches.shape
    halves = patches.reshape(frames, rows // 2, 2, columns // 2, 2, width)
    mean: NDArray[np.float32] = halves.mean(axis=(2, 4), dtype=np.float32)
    return mean.reshape(frames, -1, width)


def _soft(place_px: NDArray[np.floating]) -> NDArray[np.float32]:
    """Places [n] as shares of the two nearest of BINS bins, [n, BINS]."""
    side = CELLS * PATCH / BINS
    at = np.clip(np.asarray(place_px, np.float32) / side - 0.5, 0, BINS - 1)
    shares: NDArray[np.float32] = np.clip(1 - abs(at[:, None] - np.arange(BINS)), 0, 1)
    return shares.astype(np.float32)
