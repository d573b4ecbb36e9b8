"""A file that takes the pages host memory has no room for, mapped into memory.

It grows in segments whose space is allocated on disk before they are mapped: a write to a mapped
file on a full disk kills the process, an allocation that fails does not. What was written or read
does not stay in this process's memory: the kernel keeps of it what it has room for.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError

SEGMENT_BYTES = 64 << 20


class SpillFile:
    """Up to `most_bytes` of pages of one shape, in an unnamed file in `folder`.

    The file has no name: it is gone when the process is, however it ends. full: why it cannot grow
    further than it has, "" while it can. Raises SettingsError when nothing can be written there.
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
        self._slots = 0
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

    @property
    def slots(self) -> int:
        """Pages the file has room for now."""
        return self._slots

    def grow(self) -> bool:
        """Whether there are more slots than before; `full` says why not."""
        pages = min(self._per_segment, self._most - self._slots)
        if pages <= 0 or self.full:
            return False
        length = pages * self.page_bytes
        # A mapping starts where a page of memory does.
        start = len(self._segments) * _rounded_up(self._per_segment * self.page_bytes)
        try:
            os.posix_fallocate(self._file.fileno(), start, length)
            segment = mmap.mmap(self._file.fileno(), length, offset=start)
        except OSError as error:
            self.full = (
                f"spill file in {self.folder}: {error.strerror or error} after "
                f"{self._slots} pages; the stream goes on without what does not fit"
            )
            return False
        self._segments.append(segment)
        self._slots += pages
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


def _rounded_up(size: int) -> int:
    return -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
