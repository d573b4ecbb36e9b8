"""The pictures scenes are made of, each split with its own."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@cache
def _arrays(name: str) -> dict[str, npt.NDArray[np.uint8]]:
    with (
        as_file(files("stc.scenes") / "data" / f"{name}.npz") as path,
        np.load(path, allow_pickle=False) as held,
    ):
        stored: Any = held
        return {key: stored[key] for key in stored.files}


def people(split: Split) -> npt.NDArray[np.uint8]:
    """Persons cut out of a street, uint8 [count, 40, 24, 4] RGBA."""
    return _arrays("people")[split]


@cache
def digits(split: Split) -> tuple[npt.NDArray[np.uint8], ...]:
    """Written digits by number, each uint8 [count, 8, 8] of 0 (paper) .. 16 (ink)."""
    images, names = _arrays("digits")[split], _arrays("digits")[f"{split}_names"]
    return tuple(images[names == digit] for digit in range(10))


@cache
def places(split: Split) -> tuple[npt.NDArray[np.uint8], ...]:
    """Pictures without people, uint8 [height, width, 3], each side at least 160 px."""
    held = _arrays("backgrounds")
    return tuple(held[name] for name in sorted(held) if name.startswith(split))
