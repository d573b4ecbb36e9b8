"""Which row holds which token: the first rows stay, the others are a ring.

Tokens are numbered densely, in the order they were kept, whatever was pruned between them. The
position a token has for attention is its number while nothing has left; once tokens have left, the
ring's oldest follows the first rows at once, so that positions never exceed the rows there are.
Pure bookkeeping: knows nothing of keys and values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EMPTY = -1


class RowOrder:
    """`fixed` rows that are never written again, then a ring of `ring` rows.

    count: tokens remembered so far, those that have left included.
    """

    def __init__(self, fixed: int, ring: int) -> None:
        self.fixed = fixed
        self.ring = ring
        self.count = 0
        self._next = 0  # of the ring's rows
        self._numbers = np.full(fixed + ring, EMPTY, np.int64)

    @property
    def used(self) -> int:
        """Rows that hold a token, or have held one: no row from here on does."""
        held = np.flatnonzero(self._numbers != EMPTY)
        return int(held[-1]) + 1 if len(held) else 0

    @property
    def next_row(self) -> int:
        """The row of the next token once the first rows are filled."""
        return self.fixed + self._next

    @property
    def held(self) -> int:
        """Tokens that are held."""
        return int(np.count_nonzero(self._numbers != EMPTY))

    def place(self, count: int) -> NDArray[np.int64]:
        """Rows [count] for the next tokens; what stood there is no longer held.

        The first rows are filled first. Raises ValueError when `count` exceeds the ring.
        """
        first = min(max(0, self.fixed - self.count), count)
        if count - first > self.ring:
            raise ValueError(f"{count} tokens at once, ring of {self.ring}")
        places = np.arange(self.count, self.count + count)
        places[first:] = self.fixed + (self._next + np.arange(count - first)) % max(1, self.ring)
        self._numbers[places] = EMPTY
        return places

    def hold(self, places: NDArray[np.int64]) -> None:
        """The rows `places`, as `place` gave them, hold the next tokens."""
        self._numbers[places] = np.arange(self.count, self.count + len(places))
        self.count += len(places)
        in_ring = int(np.count_nonzero(places >= self.fixed))
        self._next = (self._next + in_ring) % max(1, self.ring)

    def positions(self) -> NDArray[np.int64]:
        """Position [fixed + ring] of every row's token, EMPTY where there is none."""
        positions: NDArray[np.int64] = self._numbers.copy()
        ring = positions[self.fixed :]
        held = ring != EMPTY
        if held.any():
            ring[held] += self.fixed - ring[held].min()
        return positions

    def with_next(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """`positions` as they will be once `places` are held."""
        future = RowOrder(self.fixed, self.ring)
        future.count, future._next = self.count, self._next
        future._numbers = self._numbers.copy()
        future.hold(places)
        return future.positions()
