"""Drawing that is the same with every numpy: only uniform numbers and integer seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def generator(*key: int) -> np.random.Generator:
    """A generator of its own for each key of non-negative integers."""
    return np.random.Generator(np.random.PCG64(key))


def pick(random: np.random.Generator, among: Sequence[T]) -> T:
    """One of `among`, each as likely."""
    return among[int(random.random() * len(among))]


def shuffled(random: np.random.Generator, among: Sequence[T]) -> list[T]:
    """All of `among` in any order."""
    out = list(among)
    for last in range(len(out) - 1, 0, -1):
        other = int(random.random() * (last + 1))
        out[last], out[other] = out[other], out[last]
    return out


def between(random: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * random.random()


def whole(random: np.random.Generator, low: int, high: int) -> int:
    """An integer of low .. high, both included."""
    return low + int(random.random() * (high - low + 1))


def chance(random: np.random.Generator, share: float) -> bool:
    return bool(random.random() < share)
