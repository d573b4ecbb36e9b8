"""Makes stc/scenes/data from tests/data/street.mp4, tests/data/cuts.mp4 and scikit-learn's digits.

`scripts/scene-data` runs it. The files are part of the repository; at last it prints the seeds of
the frozen test, which stc/scenes/frozen.py holds.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.datasets import load_digits

from stc.scenes.frozen import best_seeds

FROM = Path(__file__).resolve().parent / "data"
TO = FROM.parent.parent / "stc" / "scenes" / "data"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

HIGH, WIDE = 40, 24
"""Pixels of a person's picture."""
PEOPLE = {
    "train": range(0, 130, 5),
    "validation": range(130, 140, 2),
    "test": range(140, 200, 5),
}
"""Frames of street.mp4."""
UNCLEAN = {
    "train": (10, 13, 14, 15, 16, 30, 40, 47, 51, 52, 55, 57, 58, 62),
    "validation": (0, 6),
    "test": (4, 9, 11, 12, 21, 22, 24, 25, 27, 31),
}
"""What was found but is no clean picture of one person, by looking."""
STREET = {
    "train": (slice(0, 384), slice(0, 336)),
    "validation": (slice(0, 184), slice(344, 512)),
    "test": (slice(192, 384), slice(344, 512)),
}
"""Rows and columns of the empty street."""
FILM = {
    "train": [(10, slice(0, 384), slice(366, 528)), (25, slice(110, 384), slice(120, 286))],
    "validation": [(35, slice(0, 190), slice(366, 528))],
    "test": [(40, slice(194, 384), slice(366, 528))],
}
"""Frames of cuts.mp4 with rows and columns without a face."""
DIGITS = {"train": slice(0, 1200), "validation": slice(1200, 1400), "test": slice(1400, 1797)}


def frames(name: str) -> Bytes:
    with av.open(str(FROM / name)) as video:
        return np.stack([one.to_ndarray(format="rgb24") for one in video.decode(video=0)])


def people(street: Bytes, empty: Bytes, times: range) -> list[Bytes]:
    found = []
    for time in times:
        mask = moved(street[time], empty)
        names, _ = ndimage.label(mask, np.ones((3, 3)))
        for number, place in enumerate(ndimage.find_objects(names), 1):
            body = ndimage.binary_fill_holes(names[place] == number)
            high, wide = body.shape
            if 34 <= high <= 80 and 10 <= wide <= 48 and 1.6 <= high / wide <= 4.2:
                found.append(small(street[time][place], ndimage.binary_erosion(body)))
    return found


def moved(frame: Bytes, empty: Bytes) -> Mask:
    """Where a frame differs from the empty street, shadows left out."""
    here, there = frame.astype(np.float32), empty.astype(np.float32)
    far = ndimage.uniform_filter(np.abs(here - there).max(-1), 3) > 26
    share = (here.mean(-1) + 1) / (there.mean(-1) + 1)
    tint = np.abs((here - here.mean(-1, keepdims=True)) - (there - there.mean(-1, keepdims=True)))
    shadow = (share > 0.5) & (share < 1.1) & (tint.max(-1) < 12)
    mask = far & ~shadow
    mask = ndimage.binary_closing(mask, np.ones((5, 3)))
    return np.asarray(ndimage.binary_opening(mask, np.ones((2, 2))))


def small(picture: Bytes, body: Mask) -> Bytes:
    """A person as RGBA of HIGH x WIDE, as large as it fits, in the middle."""
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cover, inks = body[place].astype(np.float32), picture[place].astype(np.float32)
    scale = min(HIGH / cover.shape[0], WIDE / cover.shape[1])
    high, wide = round(cover.shape[0] * scale), round(cover.shape[1] * scale)
    alpha = shrunk(cover, high, wide)
    ink = shrunk(inks * cover[..., None], high, wide) / np.maximum(alpha, 1e-3)[..., None]
    out = np.zeros((HIGH, WIDE, 4), np.uint8)
    top, left = (HIGH - high) // 2, (WIDE - wide) // 2
    held = out[top : top + high, left : left + wide]
    held[..., :3] = ink.clip(0, 255).round()
    held[..., 3] = (255 * alpha).clip(0, 255).round()
    return out


def shrunk(picture: Floats, high: int, wide: int) -> Floats:
    return np.asarray(across(across(picture, high).swapaxes(0, 1), wide).swapaxes(0, 1))


def across(picture: Floats, count: int) -> Floats:
    """`count` rows, each the mean of the rows it stands for."""
    fine = np.repeat(picture, count, axis=0)
    taken = fine.reshape(count, picture.shape[0], *picture.shape[1:])
    return np.asarray(taken.mean(1), np.float32)


def backgrounds(empty: Bytes, film: Bytes, split: str) -> list[Bytes]:
    taken = [empty[STREET[split]]]
    return taken + [film[time][rows, columns] for time, rows, columns in FILM[split]]


def main() -> None:
    street, film = frames("street.mp4"), frames("cuts.mp4")
    empty = np.median(street[::2], axis=0).astype(np.uint8)
    digits = load_digits()
    store: dict[str, dict[str, Bytes]] = {"people": {}, "backgrounds": {}, "digits": {}}
    for split in PEOPLE:
        found = people(street, empty, PEOPLE[split])
        clean = [one for number, one in enumerate(found) if number not in UNCLEAN[split]]
        store["people"][split] = np.stack(clean)
        for number, one in enumerate(backgrounds(empty, film, split)):
            store["backgrounds"][f"{split}_{number}"] = one
        store["digits"][split] = digits.images[DIGITS[split]].astype(np.uint8)
        store["digits"][f"{split}_names"] = digits.target[DIGITS[split]].astype(np.uint8)
    for name, arrays in store.items():
        np.savez_compressed(TO / f"{name}.npz", allow_pickle=False, **arrays)
        print(name, {key: value.shape for key, value in arrays.items()})
    print("SEEDS =", tuple(best_seeds(pool=800, count=76, silent=8)))


if __name__ == "__main__":
    main()
