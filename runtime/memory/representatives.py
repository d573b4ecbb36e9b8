"""One key per page that stands for the page: what retrieval ranks pages by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST = 64
"""Pages there is room for at first."""


class Representatives:
    """Representatives of the pages that are left, oldest first, in a ring per block.

    A ring holds [capacity, G*e] float32 and grows by half, up to `most` pages.
    """

    def __init__(self, blocks: int, heads: int, width: int, most: int) -> None:
        self._heads, self._width = heads, width
        self._most = most
        self._capacity = min(LEAST, most)
        self._first = 0
        self._count = 0
        self._rings = [self._blank() for _ in range(blocks)]

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Bytes the rings hold, used or not."""
        return sum(ring.nbytes for ring in self._rings)

    def add(self, representative: NDArray[np.float32]) -> None:
        """The page of `representative` [blocks, G, e] is the newest."""
        if self._count == self._capacity:
            self._grow()
        place = (self._first + self._count) % self._capacity
        for ring, key in zip(self._rings, representative, strict=True):
            ring[place] = key.ravel()
        self._count += 1

    def drop(self, count: int) -> None:
        """The `count` oldest pages are no longer known."""
        self._first = (self._first + count) % self._capacity
        self._count -= count

    def scores(self, block: int, mean_query: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [pages], oldest first, by `mean_query` [Q, e], un-rotated as the keys are.

        A score is the sum over query heads of their product with the key head they share.
        """
        grouped = mean_query.reshape(self._heads, -1, self._width).sum(axis=1).ravel()
        return np.concatenate([part @ grouped for part in self._parts(self._rings[block])])

    def _parts(self, ring: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """The pages of `ring`, oldest first: its end, then its beginning."""
        last = self._first + self._count
        return ring[self._first : last], ring[: max(0, last - self._capacity)]

    def _grow(self) -> None:
        if self._capacity == self._most:
            raise ValueError(f"more than {self._most} pages")
        held, self._capacity = self._capacity, min(self._capacity * 3 // 2, self._most)
        for block, ring in enumerate(self._rings):
            # Ring by ring, so that only one is held twice at a time.
            grown = self._blank()
            grown[:held] = np.concatenate((ring[self._first :], ring[: self._first]))
            self._rings[block] = grown
        self._first = 0

    def _blank(self) -> NDArray[np.float32]:
        return np.empty((self._capacity, self._heads * self._width), np.float32)


def best(scores: NDArray[np.float32], count: int) -> list[int]:
    """The `count` pages of highest score, in order of time; of equals the older."""
    if count >= len(scores):
        return list(range(len(scores)))
    least = np.partition(scores, -count)[-count]
    above = np.flatnonzero(scores > least)
    level = np.flatnonzero(scores == least)[: count - len(above)]
    return sorted(int(page) for page in (*above, *level))
