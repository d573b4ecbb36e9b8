"""Retrieval of whole frames (ReKV): what left the window is fetched back when a question needs it.

While frames come in, the decoder sees the prompt's first tokens and the last frames, as with a
window. A page that leaves it goes to the host. At a question every block ranks all pages, those
of the window and those of the host, by the product of its mean query with their representative
keys, and the question attends to the prompt's first tokens and the best pages in order of time, at
consecutive positions, and to nothing else.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.runtime.language.kv_buckets import EMPTY
from stc.runtime.language.kv_rows import KvRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.host_pages import HostPages, PageCap, SpillFile
from stc.runtime.memory.window import Context, MemoryFacts, WindowMemory, refuse_long

LEAST = 64
"""Pages whose representatives there is room for at first."""


class RekvMemory(WindowMemory):
    """A window of `cap.window` pages of `page` tokens, older ones on the host, `top` fetched a
    question.

    The first `fixed` tokens are the prompt's; they must be remembered before any page. Pages that
    `cap` leaves no room for go to `spill`, the oldest are dropped.
    """

    policy = "rekv"

    def __init__(
        self,
        model: LanguageModel,
        *,
        fixed: int,
        page: int,
        top: int,
        cap: PageCap,
        spill: SpillFile | None = None,
    ) -> None:
        super().__init__(model, fixed=fixed, window=cap.window * page)
        spec = model.spec
        self.page = page
        self.top = top
        self.host = HostPages(cap.held, spill)
        self._window: deque[int] = deque()  # the first row of every page, oldest first
        # Of the pages of the host, then of those of the window.
        self._representatives = Representatives(
            spec.blocks, spec.key_heads, spec.head_width, sum(cap)
        )
        self._answer_rows = KvRows(model, spec.max_positions)

    def remember(self, hidden: NDArray[Any]) -> NDArray[np.int64]:
        prompt = self.order.fixed - self.order.count
        if prompt > 0:
            if len(hidden) != prompt:
                raise ValueError(f"{len(hidden)} tokens, prompt of {prompt}")
            return super().remember(hidden)
        if len(hidden) % self.page:
            raise ValueError(f"{len(hidden)} tokens, pages of {self.page}")
        self._admit(len(hidden))
        pages = len(hidden) // self.page
        while len(self._window) + pages > self.order.ring // self.page:
            dropped = self.host.add(self._kv(self._window.popleft()))
            self._representatives.drop(dropped)
        rows = super().remember(hidden)
        for row in rows[:: self.page].tolist():
            self._window.append(row)
            self._representatives.add(self._representative(row))
        return rows

    def context(self, count: int) -> Context:
        fixed = self.order.fixed
        fetched = min(self.top, len(self._representatives))
        start = fixed + fetched * self.page
        refuse_long(self.model, start, count)
        rows = self._answer_rows
        rows.fit(start + count)
        positions = np.full(rows.capacity, EMPTY, np.int64)
        positions[:start] = np.arange(start)
        if not start:
            return Context(rows, 0, 0, positions)

        def retrieve(block: int, mean_query: NDArray[np.float32]) -> None:
            rows.copy(block, 0, self.rows, 0, fixed)
            pages = best(self._representatives.scores(block, mean_query), fetched)
            for place, number in enumerate(pages):
                self._fetch(block, number, fixed + place * self.page)

        return Context(rows, start, start, positions, retrieve)

    def _fetch(self, block: int, number: int, row: int) -> None:
        """The answer's rows from `row` on hold page `number` of all, oldest first."""
        if number >= len(self.host):
            first = self._window[number - len(self.host)]
            self._answer_rows.copy(block, row, self.rows, first, self.page)
            return
        keys, values = map(self.model.backend.to_device, self.host.read(number, block))
        self._answer_rows.write(block, row + np.arange(self.page), keys, values)

    def facts(self) -> MemoryFacts:
        return MemoryFacts(
            policy=self.policy,
            tokens=self.order.held,
            device_bytes=self.rows.size_bytes + self._answer_rows.size_bytes,
            host_pages=self.host.held,
            host_bytes=self.host.held_bytes + self._representatives.size_bytes,
            spilled_pages=self.host.spilled,
            dropped_pages=self.host.dropped,
        )

    def notices(self) -> list[str]:
        return self.host.notices()

    def _kv(self, start: int) -> NDArray[Any]:
        """The page at row `start`: [blocks, 2, G, k, e]."""
        blocks = range(self.model.spec.blocks)
        return np.stack([np.stack(self.rows.read(block, start, self.page)) for block in blocks])

    def _representative(self, start: int) -> NDArray[np.float32]:
        """float32 [blocks, G, e]: the mean over the tokens of the page at row `start`."""
        backend = self.model.backend
        keys = [backend.read_rows(buffer, start, self.page) for buffer in self.rows.keys]
        mean: NDArray[np.float32] = np.stack(keys).mean(axis=2, dtype=np.float32)
        return mean


def page_shape(model: LanguageModel, page: int) -> tuple[int, ...]:
    """[blocks, 2, G, k, e] of a page of `page` = k tokens."""
    return (model.spec.blocks, 2, model.spec.key_heads, page, model.spec.head_width)


class Representatives:
    """One key per page that stands for it, of the pages that are left, oldest first.

    Every block has a ring [capacity, G*e] float32, which grows by half, up to `most` pages.
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
