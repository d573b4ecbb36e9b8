"""What an engine and a backend are, to everyone who runs graphs.

A `Tensor` is opaque: it belongs to the backend that made it and lives where its engines
compute. Only `to_device` and `to_host` move bytes between it and numpy.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.errors import EngineError

Tensor = Any


class Engine(Protocol):
    """One loaded graph."""

    name: str

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """The graph's outputs for `inputs`, by name.

        `outputs` names the outputs wanted (default all) and for each the tensor to write into,
        or None for a new one. A tensor written into must not be one of `inputs`. Work for
        outputs that nobody wants may be left out.

        Raises EngineError naming the graph.
        """
        ...


class Backend(Protocol):
    """Makes engines and tensors on one device."""

    name: str

    def load(self, graph: str) -> Engine:
        """The engine of the graph called `graph`. Raises EngineError when it cannot be loaded."""
        ...

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        """A tensor with the values of `array`, which may be reused by the caller afterwards."""
        ...

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        """The values of `tensor`, in an array of the caller's own."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        """A tensor of `shape` with any values."""
        ...

    def write_rows(
        self, buffer: Tensor, start: int, rows: Tensor, first: int = 0, count: int | None = None
    ) -> None:
        """Rows `start`, `start` + 1, ... of `buffer` [heads, S, e] hold rows `first`, ... of `rows`
        [heads, m, e]: `count` of them, by default all from `first` on.

        Only those rows of every head are touched; on a GPU it is one strided copy on the device.
        """
        ...

    def read_rows(self, tensor: Tensor, start: int, count: int) -> NDArray[Any]:
        """Rows `start` to `start` + `count` of `tensor` [..., m, e], in an array of the caller's
        own."""
        ...

    def close(self) -> None:
        """What it holds on its device is given back; engines and tensors are of no use any more."""
        ...

    def refuse_closed(self) -> None:
        """Raise EngineError when it was closed, and DeviceError when its device is gone."""
        ...


def is_closed(backend: str) -> EngineError:
    """What there is to say of the backend of that name once it was closed."""
    return EngineError(backend, "is closed", "", "open the tower again")


def lock_of(backend: Backend) -> AbstractContextManager[Any]:
    """The re-entrant lock to hold while working with `backend`, where several threads may.

    Its `lock`, if it has one: it then takes one thread at a time. Otherwise it takes several, and
    the lock is a new one, the caller's own.
    """
    lock: AbstractContextManager[Any] = getattr(backend, "lock", None) or threading.RLock()
    return lock
