"""What an engine, a backend and a runner of programs are, to everyone who runs graphs.

A `Tensor` is opaque: it belongs to the backend that made it and lives where its engines
compute. Only `to_device` and `to_host` move bytes between it and numpy.

Programs (`stc.program`) are run graph after graph on any backend by `stc.engines.eager`, and
replayed as one CUDA graph each by `stc.engines.tensorrt.captured`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.errors import EngineError
from stc.program import Arrays, Buffer, Program

Tensor = Any

REFERENCE_SETS = 2
"""Sets of references of a stream whose programs are captured: one is written while the other
still serves."""

Look = Callable[[str, Mapping[str, Tensor]], None]
"""Called with a graph's name and its outputs, by port, after it ran."""


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


@dataclass(frozen=True)
class Ran:
    """One run of a program.

    results: by buffer, on the host, the caller's own. stage_ms: time by stage; engine_ms: of the
    graphs alone. on_gpu: whether those are times of the GPU, else of the host's clock.
    """

    results: Arrays
    stage_ms: dict[str, float]
    engine_ms: float
    on_gpu: bool = False


class Runner(Protocol):
    """The memory of one stream, and its programs ready to run in it.

    references_bytes: of all references it holds. warm_up_runs: runs of each program after which
    all runs are alike. cheap_reads: whether `read` holds no later work up.
    """

    references_bytes: int
    warm_up_runs: int
    cheap_reads: bool

    @property
    def captured(self) -> set[str]:
        """Programs whose next run is the replay of a graph."""
        ...

    def run(self, program: str, inputs: Mapping[str, Any], look: Look | None = None) -> Ran:
        """Run the program of that name. Raises EngineError; references may be spoilt then, but
        those of a GPU, where a program that failed leaves them as they were.

        With `look` graphs run one by one, and it is shown the outputs of each.
        """
        ...

    def read(self, buffer: str) -> NDArray[Any]:
        """What `buffer` holds since the last run, the caller's own."""
        ...

    def wrote(self, buffer: str) -> bool:
        """Whether the last run came to write `buffer`."""
        ...

    def takes(self, array: object) -> bool:
        """Whether `array` may be an input as it is, because it lies where graphs compute."""
        ...

    def close(self) -> None:
        """Its memory is given back."""
        ...


def buffers_of(programs: Iterable[Program]) -> dict[str, Buffer]:
    """The buffers of all `programs`, by name; those of one name are one buffer.

    Raises EngineError for two of a name that differ.
    """
    found: dict[str, Buffer] = {}
    for program in programs:
        for name, buffer in program.buffers.items():
            known = found.setdefault(name, buffer)
            if (known.shape, known.dtype) != (buffer.shape, buffer.dtype):
                raise EngineError(program.name, f"{name} is {buffer}", str(known))
    return found


def stream_bytes(programs: Iterable[Program], *, reference_sets: int = 1) -> dict[str, int]:
    """Bytes that a stream of `programs` holds: of its references, in so many sets, and all else."""
    found = buffers_of(programs).values()
    references = sum(one.size_bytes for one in found if one.role == "reference")
    whole = sum(one.size_bytes for one in found)
    return {"references": reference_sets * references, "work": whole - references}
