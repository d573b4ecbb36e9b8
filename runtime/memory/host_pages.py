"""Pages that left the window: in host memory, then in a file, the oldest dropped.

A page is the kept tokens of one frame in every block: [blocks, 2, G, k, e], keys before values.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError

SEGMENT_BYTES = 64 << 20


class HostPages:
    """At most `most` pages in host memory, older ones in `spill`, the oldest dropped.

    spilled: pages in the spill file. dropped: pages gone for good.
    """

    def __init__(self, most: int, spill: SpillFile | None = None) -> None:
        self._most = most
        self._spill = spill
        self._told_full = False
        self.spilled = 0
        self.dropped = 0
        self._left = 0  # pages that were in the spill file and no longer are
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

    def add(self, kv: NDArray[Any]) -> int:
        """A copy of the page `kv` is held as the newest; returns how many of the oldest pages
        were dropped for it."""
        before = self.dropped
        room = self._make_room() if self.held == self._most else np.empty_like(kv)
        room[:] = kv
        self._held.append(room)
        return self.dropped - before

    def read(self, number: int, block: int) -> NDArray[Any]:
        """Keys and values [2, G, k, e] of page `number`, the oldest left being 0."""
        if self._spill is not None and number < self.spilled:
            return self._spill.read((self._left + number) % self._spill.slots, block)
        page: NDArray[Any] = self._held[number - self.spilled][block]
        return page

    def notices(self) -> list[str]:
        """That the spill file is full, the first time after it happened."""
        if self._spill is None or not self._spill.full or self._told_full:
            return []
        self._told_full = True
        return [self._spill.full]

    def _make_room(self) -> NDArray[Any]:
        """The memory of the oldest page held, which is in the spill file or dropped."""
        oldest, spill = self._held.popleft(), self._spill
        if spill is None:
            self.dropped += 1
            return oldest
        # A file that cannot grow never will: from then on its slots are a ring.
        if self.spilled == spill.slots and not spill.grow():
            self.dropped += 1
            if not self.spilled:
                return oldest
            self._left += 1
            self.spilled -= 1
        spill.write((self._left + self.spilled) % spill.slots, oldest)
        self.spilled += 1
        return oldest


class SpillFile:
    """Up to `most_bytes` of pages of one shape, in an unnamed file in `folder`, mapped into memory.

    The file has no name: it is gone when the process is, however it ends. It grows in segments
    whose space is allocated on disk before they are mapped: a write to a mapped file on a full disk
    kills the process, an allocation that fails does not. What was written or read does not stay in
    this process's memory: the kernel keeps of it what it has room for.

    slots: pages there is room for now. full: why it cannot grow further, "" while it can.

    Raises SettingsError when nothing can be written there.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], most_bytes: int
    ) -> None:
        self.folder = folder
        self.full = ""
        self._shape, self._dtype = shape, dtype
        self.page_bytes = int(np.prod(shape)) * dtype.itemsize
        self._most = most_bytes // self.page_bytes
        self._per_segment = max(1, SEGMENT_BYTES // self.page_bytes)
        self._segments: list[mmap.mmap] = []
        self.slots = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (lives with the object)
            weakref.finalize(self, self._file.close)
        except OSError as error:
            raise SettingsError(
                "--spill",
                f"{folder} cannot be written ({error.strerror or error})",
                "a folder with space",
                "choose another folder",
            ) from error

    def grow(self) -> bool:
        """Whether there are more slots than before; `full` says why not."""
        pages = min(self._per_segment, self._most - self.slots)
        if pages <= 0 or self.full:
            return False
        length = pages * self.page_bytes
        # A mapping starts where a page of memory does.
        granules = -(-self._per_segment * self.page_bytes // mmap.ALLOCATIONGRANULARITY)
        start = len(self._segments) * granules * mmap.ALLOCATIONGRANULARITY
        try:
            os.posix_fallocate(self._file.fileno(), start, length)
            segment = mmap.mmap(self._file.fileno(), length, offset=start)
        except OSError as error:
            self.full = (
                f"spill file in {self.folder}: {error.strerror or error} after "
                f"{self.slots} pages; the stream goes on without what does not fit"
            )
            return False
        self._segments.append(segment)
        self.slots += pages
        return True

    def write(self, slot: int, kv: NDArray[Any]) -> None:
        """`slot` holds the page `kv`."""
        self._page(slot)[:] = kv
        self._leave(slot)

    def read(self, slot: int, block: int) -> NDArray[Any]:
        """Keys and values [2, G, k, e] of a block of the page in `slot`."""
        page: NDArray[Any] = self._page(slot)[block].copy()
        self._leave(slot)
        return page

    def _page(self, slot: int) -> NDArray[Any]:
        segment, place = divmod(slot, self._per_segment)
        values = int(np.prod(self._shape))
        start = place * self.page_bytes
        page: NDArray[Any] = np.frombuffer(self._segments[segment], self._dtype, values, start)
        return page.reshape(self._shape)

    def _leave(self, slot: int) -> None:
        """The page in `slot` no longer counts as memory of this process."""
        segment, place = divmod(slot, self._per_segment)
        start = place * self.page_bytes
        whole = start // mmap.PAGESIZE * mmap.PAGESIZE
        length = start + self.page_bytes - whole
        self._segments[segment].madvise(mmap.MADV_DONTNEED, whole, length)


class PageCap(NamedTuple):
    """Pages there can be: on the device, in host memory and in the spill file."""

    window: int
    held: int
    spilled: int


def page_cap(
    most_bytes: int,
    *,
    window: int,
    spill_bytes: int,
    page_bytes: int,
    representative_bytes: int,
) -> PageCap:
    """How many pages of `page_bytes` fit `most_bytes` of host memory, beside `window` others.

    Representatives, of `representative_bytes` each, stay there wherever their page is. A spill file
    of `spill_bytes` is used as far as those of its pages take half of the memory at most.

    Raises SettingsError when not even one page fits.
    """
    left = most_bytes - window * representative_bytes
    spilled = min(spill_bytes // page_bytes, max(0, left) // 2 // representative_bytes)
    held = (left - spilled * representative_bytes) // (page_bytes + representative_bytes)
    if held < 1:
        least = page_bytes + (window + 1) * representative_bytes
        raise SettingsError(
            "--host-memory-mb",
            f"got {most_bytes / 1e6:g} MB",
            f"at least {least / 1e6:g}, one frame's page and what the window's are found by",
        )
    return PageCap(window, held, spilled)
