"""A frame as data: which graphs run, in which order, on which buffers.

A *family* of graphs (`stc.method.family` is the paper's) yields a Program for each kind of frame.
Everything else reads programs and knows no graph by name: what runs them one graph after the other,
what captures them as CUDA graphs, what runs two sides and compares after every call, and what adds
up the memory they need.

Knows nothing of files, runtimes or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Role = Literal["input", "constant", "work", "choice", "reference", "result"]
"""Who writes a buffer: the caller before each run, nobody, or calls. A choice holds indices that
the caller may look at after a run; a reference is what one kind of frame leaves for the frames that
follow; a result is what the caller gets."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Buffer:
    """One tensor of fixed `shape` and numpy `dtype`.

    constant: of role `constant`, the value of every element.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = "work"
    constant: int = 0

    @property
    def size_bytes(self) -> int:
        """What it takes in memory."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def values(self) -> NDArray[Any]:
        """What a constant holds."""
        return np.full(self.shape, self.constant, self.dtype)


@dataclass(frozen=True)
class Call:
    """One run of `graph`: its ports by name, each with the buffer it reads or writes.

    Outputs that `writes` leaves out are not wanted. stage: what the call's time is counted as.
    sizes: of the graph's free axes, by symbol.
    """

    graph: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]
    stage: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """`calls` in running order, and every buffer they name."""

    name: str
    calls: tuple[Call, ...]
    buffers: Mapping[str, Buffer]

    def of_role(self, *roles: Role) -> list[Buffer]:
        """Its buffers of `roles`."""
        return [buffer for buffer in self.buffers.values() if buffer.role in roles]

    @cached_property
    def graphs(self) -> tuple[str, ...]:
        """The graphs it runs, each once, in the order of their first calls."""
        return tuple(dict.fromkeys(call.graph for call in self.calls))

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages of its calls, each once, in order."""
        return tuple(dict.fromkeys(call.stage for call in self.calls))

    @cached_property
    def written(self) -> frozenset[str]:
        """The buffers that its calls write."""
        return frozenset(name for call in self.calls for name in call.writes.values())

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """The inputs it reads."""
        read = {name for call in self.calls for name in call.reads.values()}
        return tuple(one.name for one in self.of_role("input") if one.name in read)

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The results it yields."""
        return tuple(one.name for one in self.of_role("result") if one.name in self.written)

    @cached_property
    def choices(self) -> tuple[str, ...]:
        """What it writes of indices that the caller may look at, results among them."""
        seen = self.of_role("choice", "result")
        kinds = {one.name for one in seen if np.dtype(one.dtype).kind == "i"}
        return tuple(name for call in self.calls for name in call.writes.values() if name in kinds)

    @cached_property
    def renews(self) -> bool:
        """Whether it writes references."""
        return any(self.buffers[name].role == "reference" for name in self.written)

    def given(self, names: Iterable[str]) -> Program:
        """The same, but buffers `names` are inputs, and what computes nothing else is not run."""
        inputs = set(names)
        kept = tuple(call for call in self.calls if not inputs.issuperset(call.writes.values()))
        buffers = {
            name: Buffer(name, one.shape, one.dtype, "input") if name in inputs else one
            for name, one in self.buffers.items()
        }
        return Program(self.name, kept, buffers)


class Side(Protocol):
    """Computes graphs on numpy arrays, whatever it is made of."""

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """All outputs of `graph`, by port."""
        ...

    def end(self, graph: str) -> None:
        """`graph` is not run again for now: its memory may be given back."""
        ...


Judge = Callable[[Call, Arrays, Arrays, Arrays], None]
"""Given a call, its inputs on the expected side, and both sides' outputs, expected first."""


def run_paired(
    program: Program,
    expected: Side,
    got: Side,
    inputs: Mapping[str, NDArray[Any]],
    judge: Judge,
    *,
    apart: bool = False,
    ended: Callable[[str], None] = lambda _: None,
) -> None:
    """`judge` is told of every call of `program`, run on both sides.

    Both sides get equal inputs, which the expected side computed; with `apart` each goes on from
    its own outputs but for whole numbers, so that choices that differ by a tie do not make two
    streams of one. `ended` is told of each graph that is done. Arrays are dropped after their last
    use.
    """
    values = _given(program, inputs)
    own = dict(values) if apart else values
    for call, last in _walked(program, values, own):
        reads, own_reads = (
            {port: store[name] for port, name in call.reads.items()} for store in (values, own)
        )
        wanted, found = expected.run(call.graph, reads), got.run(call.graph, own_reads)
        judge(call, reads, wanted, found)
        for port, name in call.writes.items():
            values[name] = wanted[port]
            if apart:
                own[name] = wanted[port] if wanted[port].dtype.kind == "i" else found[port]
        if last:
            expected.end(call.graph)
            got.end(call.graph)
            ended(call.graph)


def run_alone(program: Program, side: Side, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """The results of `program` on one side."""
    values = _given(program, inputs)
    for call, last in _walked(program, values):
        outputs = side.run(call.graph, {port: values[name] for port, name in call.reads.items()})
        values.update((name, outputs[port]) for port, name in call.writes.items())
        if last:
            side.end(call.graph)
    return {name: values[name] for name in program.results}


def _given(program: Program, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What there is before the first call."""
    return {one.name: one.values() for one in program.of_role("constant")} | dict(inputs)


def _walked(program: Program, *stores: Arrays) -> Iterator[tuple[Call, bool]]:
    """Each call, and whether it is the last of its graph.

    Buffers that are of no use any more leave the `stores`; results stay.
    """
    last_run = {call.graph: number for number, call in enumerate(program.calls)}
    last_use: dict[str, int] = {}
    for number, call in enumerate(program.calls):
        last_use |= dict.fromkeys((*call.reads.values(), *call.writes.values()), number)
    for number, call in enumerate(program.calls):
        yield call, last_run[call.graph] == number
        for name in {*call.reads.values(), *call.writes.values()}:
            if last_use[name] == number and program.buffers[name].role != "result":
                for store in stores:
                    store.pop(name, None)
