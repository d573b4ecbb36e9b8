"""Retrieval of whole frames (ReKV): what left the window is fetched back when a question needs it.

While frames come in, the decoder sees the prompt's first tokens and the last frames, as with a
window. A page that leaves it goes to the host. At a question every block ranks all pages, those
of the window and those of the host, by the product of its mean query with their representative
keys, and the question attends to the prompt's first tokens and the best pages in order of time, at
consecutive positions, and to nothing else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import LanguageError
from stc.runtime.host_pages import HostPage, HostPages
from stc.runtime.kv_rows import KvRows
from stc.runtime.language import EMPTY, LanguageModel
from stc.runtime.memory import Context, MemoryFacts, WindowMemory, refuse_long


@dataclass(frozen=True)
class WindowPage:
    """A page still in the window, from row `start` on; its representative is [blocks, G, e]."""

    start: int
    representative: NDArray[np.float32]


class RekvMemory(WindowMemory):
    """A window of whole pages of `page` tokens, older pages in `host`, `top` fetched a question.

    The first `fixed` tokens are the prompt's; they must be remembered before any page.
    """

    policy = "rekv"

    def __init__(
        self, model: LanguageModel, *, fixed: int, window: int, page: int, top: int, host: HostPages
    ) -> None:
        if window < page:
            raise LanguageError(
                f"--window {window}", f"smaller than a frame's {page} tokens", mend="enlarge it"
            )
        super().__init__(model, fixed=fixed, window=window // page * page)
        self.page = page
        self.top = top
        self.host = host
        self._window: deque[WindowPage] = deque()
        self._answer_rows = KvRows(model, model.spec.most_positions)

    def remember(self, hidden: NDArray[Any]) -> None:
        prompt = self.order.fixed - self.order.count
        if prompt > 0:
            if len(hidden) != prompt:
                raise ValueError(f"{len(hidden)} tokens, prompt of {prompt}")
            super().remember(hidden)
            return
        if len(hidden) % self.page:
            raise ValueError(f"{len(hidden)} tokens, pages of {self.page}")
        self._admit(len(hidden))
        pages = len(hidden) // self.page
        while len(self._window) + pages > self.order.ring // self.page:
            leaving = self._window.popleft()
            self.host.add(leaving.representative, self._kv(leaving.start))
        first, start = self.order.fixed, self.order.next_row
        super().remember(hidden)
        for number in range(pages):
            row = first + (start - first + number * self.page) % self.order.ring
            self._window.append(WindowPage(row, self._representative(row)))

    def context(self, count: int) -> Context:
        host: list[HostPage] = self.host.pages
        window = list(self._window)
        fetched = min(self.top, len(host) + len(window))
        start = self.order.fixed + fetched * self.page
        refuse_long(self.model, start, count)
        rows = self._answer_rows
        rows.fit(start + count)
        positions = np.full(rows.capacity, EMPTY, np.int64)
        positions[:start] = np.arange(start)
        if not start:
            return Context(rows, 0, 0, positions)
        # [pages, blocks, G, e], oldest first.
        pages: list[HostPage | WindowPage] = [*host, *window]
        known = np.array([page.representative for page in pages])

        def retrieve(block: int, mean_query: NDArray[np.float32]) -> None:
            parts = [self.rows.read(block, 0, self.order.fixed)]
            if fetched:
                for number in best(mean_query, known[:, block], fetched):
                    parts.append(self._fetch(block, number, host, window))
            keys, values = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
            to_device = self.model.backend.to_device
            rows.write(block, np.arange(start), to_device(keys), to_device(values))

        return Context(rows, start, start, positions, retrieve)

    def _fetch(
        self, block: int, number: int, host: list[HostPage], window: list[WindowPage]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values [G, k, e] of page `number` of all, oldest first."""
        if number < len(host):
            keys, values = host[number].kv[block]
            return keys, values
        return self.rows.read(block, window[number - len(host)].start, self.page)

    def facts(self) -> MemoryFacts:
        return MemoryFacts(
            policy=self.policy,
            tokens=self.order.held,
            device_bytes=self.rows.size_bytes + self._answer_rows.size_bytes,
            host_pages=self.host.held,
            host_bytes=self.host.held * self.host.page_bytes,
            spilled_pages=self.host.spilled,
            dropped_pages=self.host.dropped,
        )

    def notices(self) -> list[str]:
        notice = self.host.notice()
        return [notice] if notice else []

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


def best(
    mean_query: NDArray[np.float32], representatives: NDArray[np.float32], count: int
) -> list[int]:
    """The `count` pages of highest score, in order of time; of equals the older.

    mean_query [Q, e], representatives [pages, G, e], un-rotated both. The score is the sum over
    query heads of their product with the key head they share.
    """
    heads, width = representatives.shape[1:]
    grouped = mean_query.reshape(heads, -1, width).sum(axis=1)
    scores = (representatives * grouped).sum(axis=(1, 2))
    ranked = np.argsort(-scores, kind="stable")[:count]
    return sorted(int(page) for page in ranked)
