"""Programs on a GPU without waiting in between: each is one CUDA graph from its second run on.

A program always works at the same addresses. References are kept twice: a program that renews them
writes the set that no other reads, and that set is the one that is read only once it has succeeded.
Each set has its own graphs, so addresses never change under one.

Inputs go up before the graph and results come down after it; the host waits once per run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.engines.engine import REFERENCE_SETS, Engine, Look, Ran, buffers_of, stream_bytes
from stc.engines.gpu.device import Recording
from stc.engines.gpu.tensor import DeviceTensor, PinnedArray, on_device, read_array
from stc.engines.library.plan import Sizes
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import EngineError
from stc.program import Buffer, Program


class CapturedRunner:
    """See `stc.engines.engine.Runner`. Graphs are loaded by `load`, the backend's own by default.

    `flags` of stc-build have engines built, by the symbol of the axis they give a size. Work on the
    GPU holds the backend's lock.

    Raises EngineError when an engine cannot be loaded or is not there at a size, naming the command
    that builds it, and DeviceError when there is not enough memory.
    """

    warm_up_runs = 2 * REFERENCE_SETS
    """Two of each program at each set of references; then every run is a replay."""
    cheap_reads = False

    def __init__(
        self,
        backend: TensorRtBackend,
        programs: Iterable[Program],
        load: Callable[[str], Engine] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        programs = tuple(programs)
        for one in programs:
            _check(one)
        self.references_bytes = stream_bytes(programs, reference_sets=REFERENCE_SETS)["references"]
        self.front = 0
        self.device = backend.device
        self._backend = backend
        self._programs = {one.name: one for one in programs}
        self._recordings: dict[tuple[str, int], Recording] = {}
        self._written: frozenset[str] = frozenset()
        load = load or backend.load
        with backend.lock:
            self._engines = {graph: load(graph) for one in programs for graph in one.graphs}
            _prepare(backend, programs, flags or {})
            # What one program computes another may be given.
            moved = {name for one in programs for name in (*one.inputs, *one.results)}
            self._make(buffers_of(programs), moved, max(len(one.stages) for one in programs))

    @property
    def captured(self) -> set[str]:
        """Programs that are replayed from a graph at the present set of references."""
        recordings = self._recordings.items()
        return {name for (name, front), one in recordings if front == self.front and one.captured}

    def run(self, program: str, inputs: Mapping[str, Any], look: Look | None = None) -> Ran:
        known = self._programs[program]
        with self._backend.lock:
            for name, array in inputs.items():
                self._upload(name, array)
            if look is None:
                self._recording(known).run()
            else:
                self._enqueue(known, self.front, look)
            for name in known.results:
                self.device.download(self._pinned[name].values, self._at[name].address)
            self.device.synchronize()
            if known.renews:
                self.front = 1 - self.front
            self._written = known.written
            # The caller's own: the pinned arrays are the next run's.
            results = {name: self._pinned[name].values.copy() for name in known.results}
            stage_ms = {
                stage: self.device.elapsed_ms(start, end)
                for stage, start, end in zip(
                    known.stages, self._marks, self._marks[1:], strict=False
                )
            }
        return Ran(results, stage_ms, sum(stage_ms.values()), on_gpu=True)

    def read(self, buffer: str) -> NDArray[Any]:
        with self._backend.lock:
            return self._backend.to_host(self.tensor(buffer))

    def wrote(self, buffer: str) -> bool:
        return buffer in self._written

    def takes(self, array: object) -> bool:
        return on_device(array)

    def tensor(self, buffer: str) -> DeviceTensor:
        """Where `buffer` lies; of references the set that is read."""
        return self._references[self.front].get(buffer) or self._at[buffer]

    def close(self) -> None:
        with self._backend.lock:
            for recording in self._recordings.values():
                recording.close()
            references = (tensor for one in self._references for tensor in one.values())
            for tensor in (*references, *self._at.values()):
                tensor.close()
            # Giving device memory back waits for all work, so no copy is under way any more.
            for array in self._pinned.values():
                array.close()
            for mark in self._marks:
                self.device.free_event(mark)

    def _make(self, buffers: Mapping[str, Buffer], moved: set[str], stages: int) -> None:
        """All memory, at addresses that never change; `moved` are copied from or to the host."""
        backend = self._backend
        self._at: dict[str, DeviceTensor] = {}
        self._references: tuple[dict[str, DeviceTensor], ...] = ({}, {})
        for name, one in buffers.items():
            if one.role == "reference":
                for references in self._references:
                    references[name] = backend.empty(one.shape, one.dtype)
            elif one.role == "constant":
                self._at[name] = backend.to_device(one.values())
            else:
                self._at[name] = backend.empty(one.shape, one.dtype)
        self._pinned = {
            name: PinnedArray(self.device, one.shape, one.dtype)
            for name, one in buffers.items()
            if name in moved
        }
        self._marks = [self.device.event() for _ in range(stages + 1)]

    def _upload(self, name: str, array: Any) -> None:
        """Enqueue: input `name` holds `array`, from the host or from where it lies on this GPU."""
        tensor = self._at[name]
        if not on_device(array):
            host = self._pinned[name].values
            np.copyto(host, array)
            self.device.upload(tensor.address, host)
            return
        found = read_array(array, self.device)
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise EngineError(
                "frame on the device",
                f"is {found.dtype} {found.shape}",
                f"{tensor.dtype} {tensor.shape}",
                "preprocess it as the network's preprocessor does, or pass an RGB image",
            )
        self.device.copy(tensor.address, found.address, tensor.size_bytes)

    def _recording(self, program: Program) -> Recording:
        key = (program.name, self.front)
        if key not in self._recordings:
            body = partial(self._enqueue, program, self.front)
            self._recordings[key] = self._backend.recording(f"{program.name} frame", body)
        return self._recordings[key]

    def _enqueue(self, program: Program, front: int, look: Look | None = None) -> None:
        """All of a program's work, at addresses that depend on the arguments alone."""
        references = self._references[1 - front if program.renews else front]
        at = {**self._at, **references}
        marks = iter(self._marks)
        self.device.mark(next(marks))
        for number, call in enumerate(program.calls):
            outputs = self._engines[call.graph](
                {port: at[name] for port, name in call.reads.items()},
                {port: at[name] for port, name in call.writes.items()},
            )
            if look is not None:
                look(call.graph, outputs)
            if call is program.calls[-1] or program.calls[number + 1].stage != call.stage:
                self.device.mark(next(marks))


def _check(program: Program) -> None:
    """What renews references writes them all and reads none before, and stages follow one another:
    two sets of references that change places, and a mark behind each stage, serve nothing else.

    Raises EngineError.
    """
    references = {one.name for one in program.of_role("reference")}
    written: set[str] = set()
    stages: list[str] = []
    for call in program.calls:
        if program.renews and (early := references & set(call.reads.values()) - written):
            raise EngineError(program.name, f"reads {min(early)} before it renews it")
        written |= references & set(call.writes.values())
        if stages[-1:] != [call.stage]:
            stages.append(call.stage)
    if program.renews and (kept := references - written):
        raise EngineError(program.name, f"renews some references and not {min(kept)}")
    if len(stages) > len(program.stages):
        raise EngineError(program.name, f"stages {stages}", "each stage's calls in a row")


def _prepare(
    backend: TensorRtBackend, programs: tuple[Program, ...], flags: Mapping[str, str]
) -> None:
    """Every engine at every size that `programs` need is ready. Raises EngineError."""
    wanted: dict[str, list[Sizes]] = {}
    for call in (call for program in programs for call in program.calls if call.sizes):
        sizes = wanted.setdefault(call.graph, [])
        if dict(call.sizes) not in sizes:
            sizes.append(dict(call.sizes))
    for graph, sizes in wanted.items():
        backend.prepare(graph, sizes, flags.get(next(iter(sizes[0])), ""))
