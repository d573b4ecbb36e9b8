"""Where calls of the language graphs write, on backends whose calls have static sizes.

Memory made and given back in every call would make a GPU wait; these buffers live on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stc.engines.engine import Backend, Tensor
from stc.manifest import LanguageSpec

MAX_SPARE = 8
"""Calls of one size whose outputs are kept for later ones; a long chunk makes more for itself."""


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

    Of other sizes, on a backend that takes any, nothing is worth keeping: there are too many.
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
        try:
            return self._spare[size].pop()
        except IndexError:
            return self._made(size)

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
