"""Calls of the language graphs: their sizes in tokens and rows, and where they write.

A backend that takes any size (ONNX Runtime) needs none, only a bound: what a call takes grows with
its tokens times the context. Engines of static shapes are built for a few, and calls are padded to
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.engines.engine import Backend, Tensor
from stc.errors import LanguageError
from stc.manifest import LanguageSpec

EMPTY = -1
"""Position of a row that holds no token, and of a token that only pads a call."""
Places = NDArray[np.int64]
"""The row of every token, in the order of the tokens."""
MAX_TOKENS = 256
"""Tokens of a call at most: its attention scores take Q * m * S * 4 bytes."""
LEAST_STEP = 256
"""Rows by which a context without buckets grows at least."""
MAX_SPARE = 8
"""Calls of one size whose outputs are kept for later ones; a long chunk makes more for itself."""


@dataclass(frozen=True)
class KvBuckets:
    """chunks: values of m, ascending; empty: any up to MAX_TOKENS. contexts: values of S,
    ascending; empty: any. fresh: rows at the end of every context that are a call's own."""

    chunks: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    fresh: int = 0

    def pieces(self, count: int) -> Iterator[tuple[int, int, int]]:
        """How `count` tokens are run: (first, tokens, size of the call) of every call."""
        first = 0
        while first < count:
            left = count - first
            if self.chunks:
                size = next((chunk for chunk in self.chunks if chunk >= left), self.chunks[-1])
            else:
                size = min(left, MAX_TOKENS)
            yield first, min(left, size), size
            first += size

    def least(self, max_positions: int) -> int:
        """Tokens that the smallest context holds, of a model of `max_positions`."""
        return self.contexts[0] - self.fresh if self.contexts else max_positions

    def context(self, rows: int, most: int) -> int:
        """S for a context of `rows` rows, beside the `fresh`, that never needs more than `most`.

        Without buckets it is at most an eighth, or LEAST_STEP, larger than `rows`, and takes
        eight values per doubling. Raises LanguageError when no bucket is large enough.
        """
        if self.contexts:
            fitting = [one for one in self.contexts if one - self.fresh >= rows]
            if fitting:
                return fitting[0]
            raise LanguageError(
                "context",
                f"{rows} rows needed",
                f"at most {self.contexts[-1] - self.fresh}, the longest its engines were built for",
                "use a smaller --window or a shorter question, or --backend onnxruntime",
            )
        step = max(LEAST_STEP, (1 << rows.bit_length()) // 16)
        return max(rows, min(-(-rows // step) * step, most))


@dataclass(frozen=True)
class CallOutputs:
    """Where every block writes what it computes in one call; None: into tensors of its own.

    Keys and values are copied into the rows at once. `hidden`: a block reads one and writes the
    other.
    """

    query: Tensor = None
    key: Tensor = None
    value: Tensor = None
    hidden: tuple[Tensor, Tensor] = (None, None)


class SpareOutputs:
    """The outputs of calls of `sizes` tokens that nobody writes to at the moment.

    Memory made and given back in every call would make a GPU wait; these buffers live on. Of other
    sizes, on a backend that takes any, nothing is worth keeping: there are too many.
    """

    def __init__(
        self, backend: Backend, spec: LanguageSpec, dtype: np.dtype[Any], sizes: tuple[int, ...]
    ) -> None:
        self._backend = backend
        self._spec = spec
        self._dtype = dtype
        self._spare: dict[int, list[CallOutputs]] = {size: [] for size in sizes}

    def take(self, size: int) -> CallOutputs:
        """Where a call of `size` tokens writes, nobody else's until `keep`."""
        if size not in self._spare:
            return CallOutputs()
        return self._spare[size].pop() if self._spare[size] else self._made(size)

    def keep(self, size: int, outputs: CallOutputs) -> None:
        """Later calls of `size` tokens may write where `outputs` are."""
        spare = self._spare.get(size)
        if spare is not None and len(spare) < MAX_SPARE:
            spare.append(outputs)

    def _made(self, size: int) -> CallOutputs:
        spec = self._spec
        queries = (spec.query_heads, size, spec.head_width)
        keys = (spec.key_heads, size, spec.head_width)
        shapes = (queries, keys, keys, (size, spec.width), (size, spec.width))
        query, key, value, *hidden = (self._backend.empty(one, self._dtype) for one in shapes)
        return CallOutputs(query, key, value, (hidden[0], hidden[1]))


def runs(places: Places) -> Iterator[tuple[int, int, int]]:
    """`places` as (row, token, count) of stretches where both go up by one."""
    if not len(places):
        return
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    edges = [0, *breaks.tolist(), len(places)]
    for first, last in pairwise(edges):
        yield int(places[first]), first, last - first
