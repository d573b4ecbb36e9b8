"""The one file that holds the weights of every graph of a bundle.

A tensor is written once under its key; graphs refer to it by offset and length (ONNX external
data), so that two graphs which share a tensor share its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 4096
"""Bytes; ONNX Runtime maps external tensors that start on a page."""


@dataclass(frozen=True)
class Span:
    """Where a tensor lies in the weights file, in bytes."""

    offset: int
    length: int


class WeightsFile:
    """Appends tensors to the file at `path`; a context manager.

    Raises OSError when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._spans: dict[str, Span] = {}

    def __enter__(self) -> WeightsFile:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def span(self, key: str) -> Span:
        """Where the tensor of `key` lies, which was added before."""
        return self._spans[key]

    def add(self, key: str, array: NDArray[np.generic]) -> Span:
        """Where the tensor of `key` lies, after writing it if it is new.

        A known key must come with the same number of bytes, or ValueError is raised.
        """
        known = self._spans.get(key)
        if known is not None:
            if known.length != array.nbytes:
                raise ValueError(f"{key}: {array.nbytes} bytes, stored with {known.length}")
            return known
        return self.add_parts(key, [array])

    def add_parts(self, key: str, parts: Iterable[NDArray[np.generic]]) -> Span:
        """Where the tensor of the new `key` lies, whose `parts` follow one another in it."""
        self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
        start = self._file.tell()
        for part in parts:
            self._file.write(np.ascontiguousarray(part).data)
        self._file.flush()
        self._spans[key] = Span(start, self._file.tell() - start)
        return self._spans[key]
