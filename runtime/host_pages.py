"""Pages that left the window: keys and values on the host, oldest dropped when there is no room.

A page is the kept tokens of one frame in every block: [blocks, 2, G, k, e], keys before values.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.spill_file import SpillFile


@dataclass
class HostPage:
    """A page and its representative key float32 [blocks, G, e], the mean over its tokens.

    kv: the page where it lies now, in host memory or in the mapped spill file.
    """

    representative: NDArray[np.float32]
    kv: NDArray[Any]
    slot: int | None = None


class HostPages:
    """At most `most_bytes` of pages in host memory, older ones in `spill`, oldest first.

    dropped: pages gone for good. Raises SettingsError when not even one page fits.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        most_bytes: int,
        spill: SpillFile | None = None,
    ) -> None:
        blocks, _, heads, _, width = shape
        self._shape, self._dtype = shape, dtype
        self.page_bytes = int(np.prod(shape)) * dtype.itemsize + blocks * heads * width * 4
        self._most = most_bytes // self.page_bytes
        if self._most < 1:
            raise SettingsError(
                "--host-memory-mb",
                f"got {most_bytes / 1e6:g} MB",
                f"at least {self.page_bytes / 1e6:g}, one frame's page",
            )
        self._spill = spill
        self._free: list[int] = []
        self._told_full = False
        self.dropped = 0
        self._spilled: deque[HostPage] = deque()
        self._held: deque[HostPage] = deque()

    @property
    def pages(self) -> list[HostPage]:
        """All that are left, oldest first."""
        return [*self._spilled, *self._held]

    @property
    def held(self) -> int:
        """Pages in host memory."""
        return len(self._held)

    @property
    def spilled(self) -> int:
        """Pages in the spill file."""
        return len(self._spilled)

    def add(self, representative: NDArray[np.float32], kv: NDArray[Any]) -> None:
        """The page is held as the newest; `kv` is copied."""
        room = self._make_room() if len(self._held) == self._most else None
        if room is None:
            room = np.empty(self._shape, self._dtype)
        room[:] = kv
        self._held.append(HostPage(representative, room))

    def notice(self) -> str:
        """That the spill file is full, the first time after it happened; else ""."""
        if self._spill is None or not self._spill.full or self._told_full:
            return ""
        self._told_full = True
        return self._spill.full

    def _make_room(self) -> NDArray[Any]:
        """The memory of the oldest page held, which is in the spill file or dropped."""
        oldest = self._held.popleft()
        room = oldest.kv
        slot = self._slot()
        if slot is None or self._spill is None:
            self.dropped += 1
            return room
        oldest.kv, oldest.slot = self._spill.page(slot), slot
        oldest.kv[:] = room
        self._spilled.append(oldest)
        return room

    def _slot(self) -> int | None:
        """A slot of the spill file to write to, that of its oldest page if need be."""
        if self._spill is None:
            return None
        before = self._spill.slots
        if not self._free and self._spill.grow():
            self._free = list(range(self._spill.slots - 1, before - 1, -1))
        if self._free:
            return self._free.pop()
        if not self._spilled:
            return None
        self.dropped += 1
        return self._spilled.popleft().slot
