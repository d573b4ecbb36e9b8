"""Un-rotated keys and values of every block, in preallocated rows.

Rows are written in place; nothing is ever concatenated. Which row holds which token is the
business of whoever writes it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.engines.engine import Tensor
from stc.runtime.language.kv_buckets import EMPTY, Places, runs
from stc.runtime.language.model import LanguageModel

SPARE = 512
"""Rows an ordinary question and its answer take, that need not be given back after them."""


class KvRows:
    """Two buffers [G, capacity, e] per block for `most` tokens at most, `capacity` in buckets.

    The last `fresh` rows of the buckets are those of the call under way. recordings: what the model
    keeps for calls on these very buffers. Every row is finite at all times once `clear` has
    followed a failed write: a row that nobody sees still takes part in a matrix product, where a
    weight of 0 does not silence a NaN.
    """

    def __init__(self, model: LanguageModel, most: int) -> None:
        self.model = model
        self.most = most
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.recordings: dict[Hashable, Any] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes the buffers hold."""
        return self.capacity * self.model.token_bytes

    def reserve(self, rows: int) -> None:
        """There are at least `rows` rows; what they hold stays.

        Raises LanguageError when the engines allow fewer.
        """
        if rows > self.capacity:
            self._resize(self.model.buckets.context(rows, self.most))

    def fit(self, rows: int) -> None:
        """There are at least `rows` rows and not many more; what the first `rows` hold stays.

        Every call pays for the rows there are, so those of one long question are given back.
        Raises as `reserve`.
        """
        self.reserve(rows)
        buckets = self.model.buckets
        spacious = buckets.context(min(rows + SPARE, self.capacity - buckets.fresh), self.most)
        if spacious < self.capacity:
            self._resize(spacious)

    def _resize(self, capacity: int) -> None:
        kept = min(self.capacity, capacity)
        self.recordings.clear()
        # Captured calls address the buffers of all blocks as one: they change together or not at
        # all. Others change one by one, so that only one is held twice at a time.
        together = self.model.captured is not None or not kept
        keys, values = ([], []) if together else (self.keys, self.values)
        for block, made in enumerate(self.model.blank_buffers(capacity)):
            sides = (keys, self.keys), (values, self.values)
            for (new, old), resized in zip(sides, made, strict=True):
                if kept:
                    self.model.backend.write_rows(resized, 0, old[block], 0, kept)
                new[block : block + 1] = [resized]
        self.keys, self.values, self.capacity = keys, values, capacity

    def write(self, block: int, places: Places, key: Tensor, value: Tensor) -> None:
        """The first tokens of `key` and `value` [G, m, e] stand in the rows `places`."""
        backend = self.model.backend
        for start, first, count in runs(places):
            backend.write_rows(self.keys[block], start, key, first, count)
            backend.write_rows(self.values[block], start, value, first, count)

    def copy(self, block: int, start: int, source: KvRows, first: int, count: int) -> None:
        """The rows from `start` on hold what the `count` rows of `source` from `first` on do."""
        backend = self.model.backend
        backend.write_rows(self.keys[block], start, source.keys[block], first, count)
        backend.write_rows(self.values[block], start, source.values[block], first, count)

    def read(self, block: int, start: int, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values [G, count, e] of `count` rows from `start`, on the host."""
        backend = self.model.backend
        return (
            backend.read_rows(self.keys[block], start, count),
            backend.read_rows(self.values[block], start, count),
        )

    def clear(self, places: Places) -> None:
        """The rows `places` hold zeros in every block, and so do those of calls."""
        fresh = min(self.model.buckets.fresh, self.capacity)
        places = np.concatenate((places, np.arange(self.capacity - fresh, self.capacity)))
        if not len(places):
            return
        blank = self.model.blank_rows(len(places))
        for block in range(self.model.spec.blocks):
            self.write(block, places, blank, blank)


class PlainRows:
    """At most `most` tokens of `model` in the order they came: token i in row i, at position i.

    Tokens from `start` on replace those that stood there and behind.

    Raises LanguageError when the engines allow fewer.
    """

    def __init__(self, model: LanguageModel, most: int) -> None:
        self.model = model
        self._rows = KvRows(model, model.spec.max_positions)
        self._rows.reserve(most)

    def remember(self, hidden: NDArray[Any], start: int) -> None:
        """The rows from `start` on hold the tokens `hidden` [m, D]."""
        places, positions = self._placed(len(hidden), start)
        self.model.remember(hidden, self._rows, places, positions)

    def logits(self, hidden: NDArray[Any], start: int) -> NDArray[np.float32]:
        """float32 [V] after the last of the tokens `hidden`; otherwise as `remember`."""
        places, positions = self._placed(len(hidden), start)
        return self.model.logits(hidden, self._rows, places, positions)

    def _placed(self, count: int, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        positions = np.full(self._rows.capacity, EMPTY, np.int64)
        positions[: start + count] = np.arange(start + count)
        return start + np.arange(count), positions
