"""Pages that left the window: keys and values on the host, oldest dropped when there is no room.

A page is the kept tokens of one frame in every block: [blocks, 2, G, k, e], keys before values.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.runtime.memory.spill_file import SpillFile


class HostPages:
    """At most `most` pages in host memory, older ones in `spill`, the oldest dropped.

    dropped: pages gone for good.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        most: int,
        spill: SpillFile | None = None,
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self._most = most
        self._spill = spill
        self._free: list[int] = []
        self._told_full = False
        self.dropped = 0
        self._slots: deque[int] = deque()
        self._held: deque[NDArray[Any]] = deque()

    def __len__(self) -> int:
        return self.spilled + self.held

    @property
    def held(self) -> int:
        """Pages in host memory."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """Bytes they take."""
        return sum(page.nbytes for page in self._held)

    @property
    def spilled(self) -> int:
        """Pages in the spill file."""
        return len(self._slots)

    def add(self, kv: NDArray[Any]) -> int:
        """A copy of the page `kv` is held as the newest; returns how many of the oldest pages
        were dropped for it."""
        before = self.dropped
        room = self._make_room() if self.held == self._most else np.empty(self._shape, self._dtype)
        room[:] = kv
        self._held.append(room)
        return self.dropped - before

    def read(self, number: int, block: int) -> NDArray[Any]:
        """Keys and values [2, G, k, e] of page `number`, the oldest left being 0."""
        if self._spill is not None and number < self.spilled:
            return self._spill.read(self._slots[number], block)
        page: NDArray[Any] = self._held[number - self.spilled][block]
        return page

    def notice(self) -> str:
        """That the spill file is full, the first time after it happened; else ""."""
        if self._spill is None or not self._spill.full or self._told_full:
            return ""
        self._told_full = True
        return self._spill.full

    def _make_room(self) -> NDArray[Any]:
        """The memory of the oldest page held, which is in the spill file or dropped."""
        oldest = self._held.popleft()
        slot = self._slot()
        if slot is None or self._spill is None:
            self.dropped += 1
        else:
            self._spill.write(slot, oldest)
            self._slots.append(slot)
        return oldest

    def _slot(self) -> int | None:
        """A slot of the spill file to write to, that of its oldest page if need be."""
        if self._spill is None:
            return None
        before = self._spill.slots
        if not self._free and self._spill.grow():
            self._free = list(range(self._spill.slots - 1, before - 1, -1))
        if self._free:
            return self._free.pop()
        if not self._slots:
            return None
        self.dropped += 1
        return self._slots.popleft()
