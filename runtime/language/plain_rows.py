"""A decoder's tokens in the order they came, the plainest memory: nothing leaves, nothing moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.runtime.language.kv_rows import KvRows
from stc.runtime.language.model import EMPTY, LanguageModel


class PlainRows:
    """Keys and values of at most `most` tokens of `model`: token i stands in row i, at position i.

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
        self.model.remember(hidden, places, self._rows, places, positions)

    def logits(self, hidden: NDArray[Any], start: int) -> NDArray[np.float32]:
        """float32 [V] after the last of the tokens `hidden`; otherwise as `remember`."""
        places, positions = self._placed(len(hidden), start)
        return self.model.logits(hidden, places, self._rows, places, positions)

    def _placed(self, count: int, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        positions = np.full(self._rows.capacity, EMPTY, np.int64)
        positions[: start + count] = np.arange(start + count)
        return start + np.arange(count), positions
