"""A backend's engines as a side of a comparison (`stc.program.Side`): numpy arrays in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from stc.engines.engine import Backend, Engine
from stc.manifest import GraphEntry
from stc.ports import GraphPorts
from stc.program import Arrays


class EngineSide:
    """Runs graphs on `backend`, inputs in the types of their `ports`.

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
