"""Programs and single graphs run on any backend: every buffer made once, or numpy in and out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from numpy.typing import NDArray

from stc.engines.engine import Backend, Engine, Look, Ran, Tensor, buffers_of, lock_of, stream_bytes
from stc.manifest import GraphEntry
from stc.ports import GraphPorts
from stc.program import Arrays, Call, Program


class EagerRunner:
    """See `stc.engines.engine.Runner`. Graphs are loaded by `load`, the backend's own by default.

    Raises EngineError when a graph cannot be loaded or there is not enough memory.
    """

    warm_up_runs = 1
    cheap_reads = True

    def __init__(
        self,
        backend: Backend,
        programs: Iterable[Program],
        load: Callable[[str], Engine] | None = None,
    ) -> None:
        programs = tuple(programs)
        self.references_bytes = stream_bytes(programs)["references"]
        self._backend = backend
        self._lock = lock_of(backend)
        load = cache(load or backend.load)
        self._programs = {one.name: one for one in programs}
        self._at = {
            name: backend.to_device(one.values())
            if one.role == "constant"
            else backend.empty(one.shape, one.dtype)
            for name, one in buffers_of(programs).items()
            if any(name in other.buffers and name not in other.inputs for other in programs)
        }
        self._calls = {
            one.name: [
                (
                    load(call.graph),
                    call,
                    self._bound(one, call.reads),
                    self._bound(one, call.writes),
                )
                for call in one.calls
            ]
            for one in programs
        }
        self._ran: list[Call] = []
        self._written: frozenset[str] | None = None

    @property
    def captured(self) -> set[str]:
        return set()

    def run(self, program: str, inputs: Mapping[str, Any], look: Look | None = None) -> Ran:
        with self._lock:
            at, backend, clock = self._at, self._backend, time.perf_counter
            ran = self._ran = []
            self._written = None
            start = clock()
            known = self._programs[program]
            given = {name: backend.to_device(inputs[name]) for name in known.inputs}
            stage_ms, engine_ms = dict.fromkeys(known.stages, 0.0), 0.0
            for engine, call, reads, writes in self._calls[program]:
                if reads is None:
                    reads = {
                        port: given[name] if name in given else at[name]
                        for port, name in call.reads.items()
                    }
                began = clock()
                outputs = engine(reads, writes)
                ended = clock()
                ran.append(call)
                engine_ms += (ended - began) * 1e3
                stage_ms[call.stage] += (ended - start) * 1e3
                start = ended
                if look is not None:
                    look(call.graph, outputs)
            results = {name: backend.to_host(at[name]) for name in known.results}
            return Ran(results, stage_ms, engine_ms)

    def read(self, buffer: str) -> NDArray[Any]:
        with self._lock:
            return self._backend.to_host(self._at[buffer])

    def wrote(self, buffer: str) -> bool:
        if self._written is None:  # of the last run, and asked for once per block
            self._written = frozenset(name for call in self._ran for name in call.writes.values())
        return buffer in self._written

    def takes(self, array: object) -> bool:
        return False

    def _bound(self, program: Program, ports: Mapping[str, str]) -> dict[str, Tensor] | None:
        """The tensors of `ports`; None where one is an input, which is another in every run."""
        if set(program.inputs) & set(ports.values()):
            return None
        return {port: self._at[name] for port, name in ports.items()}

    def close(self) -> None:
        self._at.clear()
        self._calls.clear()


class EngineSide:
    """A side of a comparison (`stc.program.Side`): graphs on `backend`, inputs as in their `ports`.

    Graphs are loaded by `load`, by default by the backend, one at a time.
    """

    def __init__(
        self,
        backend: Backend,
        ports: Mapping[str, GraphPorts] | Mapping[str, GraphEntry],
        load: Callable[[str], Engine] | None = None,
    ) -> None:
        self._backend = backend
        self._ports = ports
        self._load = load or backend.load
        self._loaded: dict[str, Engine] = {}

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if graph not in self._loaded:
            self._loaded[graph] = self._load(graph)
        tensors = {
            port.name: self._backend.to_device(inputs[port.name].astype(port.dtype))
            for port in self._ports[graph].inputs
        }
        outputs = self._loaded[graph](tensors)
        return {name: self._backend.to_host(value) for name, value in outputs.items()}

    def end(self, graph: str) -> None:
        self._loaded.pop(graph, None)
