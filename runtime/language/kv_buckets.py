"""The sizes at which the language graphs are called: tokens of a call, rows of a context.

A backend that takes any size (ONNX Runtime) needs none, only a bound: what a call takes grows with
its tokens times the context. Engines of static shapes are built for a few, and calls are padded to
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stc.errors import LanguageError

MAX_TOKENS = 256
"""Tokens of a call at most: its attention scores take Q * m * S * 4 bytes."""
LEAST_STEP = 256
"""Rows by which a context without buckets grows at least."""


@dataclass(frozen=True)
class KvBuckets:
    """chunks: values of m, ascending; empty: any up to MAX_TOKENS. contexts: values of S,
    ascending; empty: any."""

    chunks: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()

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

    def context(self, rows: int, most: int) -> int:
        """S for a context of `rows` rows that never needs more than `most`.

        Without buckets it is at most an eighth, or LEAST_STEP, larger than `rows`, and takes
        eight values per doubling. Raises LanguageError when no bucket is large enough.
        """
        if self.contexts:
            fitting = [context for context in self.contexts if context >= rows]
            if fitting:
                return fitting[0]
            raise LanguageError(
                "context",
                f"{rows} rows needed",
                f"at most {self.contexts[-1]}, the longest its engines were built for",
                "use a smaller --window or a shorter question, or --backend onnxruntime",
            )
        step = max(LEAST_STEP, (1 << rows.bit_length()) // 16)
        return max(rows, min(-(-rows // step) * step, most))
