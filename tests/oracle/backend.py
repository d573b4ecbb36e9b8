"""The numpy oracle, `tests.oracle.vision`: as a backend, and frame by frame.

It needs no files, no ONNX and no device; its tensors are numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.contracts import Contract
from stc.engines.engine import Engine, Tensor, is_closed
from stc.errors import EngineError
from stc.method.graphs import (
    ADD,
    COMPARE,
    EMBED,
    MERGE,
    PLACE,
    PROJECT,
    SELECT,
    keys_graph,
    mlp_graph,
    prune_graph,
    reference_graph,
    update_graph,
    vision_graphs,
)
from stc.settings import SCORINGS, Scoring
from tests.oracle import vision as oracle
from tests.oracle.layers import ProjectorWeights, TowerWeights

Array = NDArray[Any]
Indices = NDArray[np.int64]
Graph = Callable[..., tuple[NDArray[Any], ...]]


class OracleEngine:
    """One graph as a numpy function; see `stc.engines.engine.Engine`."""

    def __init__(self, name: str, contract: Contract, graph: Graph) -> None:
        self.name = name
        self._inputs = [port.name for port in contract.inputs]
        self._outputs = [port.name for port in contract.outputs]
        self._graph = graph

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        if set(inputs) != set(self._inputs):
            raise EngineError(self.name, f"inputs {sorted(inputs)}", str(sorted(self._inputs)))
        results = self._graph(*(inputs[name] for name in self._inputs))
        computed = dict(zip(self._outputs, results, strict=True))
        wanted = dict.fromkeys(self._outputs) if outputs is None else outputs
        for name, tensor in wanted.items():
            if tensor is not None:
                if (tensor.shape, tensor.dtype) != (computed[name].shape, computed[name].dtype):
                    raise EngineError(
                        self.name,
                        f"{name} is {computed[name].dtype} {computed[name].shape}",
                        f"{tensor.dtype} {tensor.shape}",
                    )
                np.copyto(tensor, computed[name])
                computed[name] = tensor
        return {name: computed[name] for name in wanted}


class OracleBackend:
    """The oracle of one tower and its projector; see `stc.engines.engine.Backend`."""

    name = "oracle"

    def __init__(self, tower: TowerWeights, projector: ProjectorWeights) -> None:
        self._closed = False
        prefix = tower.blocks[0].prefix_tokens
        self._contracts = vision_graphs(len(tower.blocks))
        self._graphs: dict[str, Graph] = {
            EMBED: lambda pixels: (oracle.embed(tower.embed, pixels),),
            COMPARE: lambda key, ref_key: (oracle.compare(key, ref_key, prefix),),
            SELECT: lambda score, count: (oracle.select(score, int(count[0])),),
            PLACE: lambda indices: (oracle.place(indices, len(tower.embed.position)),),
            ADD: lambda hidden, residual: (hidden + residual,),
            MERGE: lambda *inputs: (oracle.merge(*inputs),),
            PROJECT: lambda hidden: (oracle.project(projector, hidden),),
        }
        for number, block in enumerate(tower.blocks):
            self._graphs[reference_graph(number)] = _bound(oracle.reference, block)
            self._graphs[keys_graph(number)] = _single(oracle.keys, block)
            self._graphs[update_graph(number)] = _bound(oracle.update, block)
            self._graphs[mlp_graph(number)] = _single(oracle.mlp, block)
        for scoring in SCORINGS:
            self._graphs[prune_graph(scoring)] = _pruning(scoring)

    def load(self, graph: str) -> Engine:
        if graph not in self._graphs:
            raise EngineError(graph, "no such graph", f"one of {len(self._graphs)} of the tower")
        return OracleEngine(graph, self._contracts[graph], self._graphs[graph])

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        return array.copy()

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        return np.array(tensor)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        return np.empty(shape, dtype)

    def write_rows(
        self, buffer: Tensor, start: int, rows: Tensor, first: int = 0, count: int | None = None
    ) -> None:
        taken = rows[:, first : None if count is None else first + count]
        buffer[:, start : start + taken.shape[1]] = taken

    def read_rows(self, tensor: Tensor, start: int, count: int) -> NDArray[Any]:
        return np.array(tensor[..., start : start + count, :])

    def close(self) -> None:
        self._graphs.clear()
        self._closed = True

    def refuse_closed(self) -> None:
        if self._closed:
            raise is_closed(self.name)


def _bound(function: Callable[..., tuple[NDArray[Any], ...]], first: object) -> Graph:
    return lambda *inputs: function(first, *inputs)


def _single(function: Callable[..., NDArray[Any]], first: object) -> Graph:
    return lambda *inputs: (function(first, *inputs),)


def _pruning(scoring: Scoring) -> Graph:
    return lambda tokens, mean, history, count: oracle.prune(
        scoring, tokens, mean, float(history[0]), int(count[0])
    )
