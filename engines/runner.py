"""What runs a stream's programs (`stc.program`) on one backend, to everyone who pushes frames.

`stc.engines.eager` runs graph after graph on any backend; `stc.engines.tensorrt.captured` replays a
program as one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from stc.engines.engine import Tensor
from stc.errors import EngineError
from stc.program import Arrays, Buffer, Program

REFERENCE_SETS = 2
"""Sets of references of a stream whose programs are captured: one is written while the other
still serves."""

Look = Callable[[str, Mapping[str, Tensor]], None]
"""Called with a graph's name and its outputs, by port, after it ran."""


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
