"""The graphs of a bundle as PyTorch functions on numpy arrays, to compare a bundle with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stc import contracts
from stc.contracts import COUNT, Contract
from stc.errors import ExportError
from stc.export.checkpoint import VisionWeights
from stc.export.modules import Select
from stc.export.prune_module import Prune
from stc.export.tower import Tower
from stc.settings import SCORINGS

Arrays = Mapping[str, NDArray[Any]]


class TorchGraphs:
    """Runs the module of a graph, float32; one module is in memory at a time."""

    def __init__(self, weights: VisionWeights) -> None:
        self._tower = Tower(weights)
        self._contracts = contracts.vision_graphs(weights.spec.blocks)
        self._held: tuple[tuple[str, int], nn.Module] | None = None

    def __call__(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """The outputs of `graph` for `inputs`, by the contract's names.

        Raises ExportError for a graph the tower does not have.
        """
        contract = self._contracts.get(graph)
        if contract is None:
            raise ExportError(graph, "no such graph in this checkpoint's tower")
        count = int(inputs[COUNT][0]) if COUNT in inputs else 0
        if self._held is None or self._held[0] != (graph, count):
            self._held = (graph, count), self._module(graph, contract, count)
        module = self._held[1]
        ports = [port.name for port in contract.inputs if port.name != COUNT]
        with torch.inference_mode():
            result = module(*(torch.from_numpy(np.ascontiguousarray(inputs[p])) for p in ports))
        outputs = result if isinstance(result, tuple) else (result,)
        names = (port.name for port in contract.outputs)
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    def _module(self, graph: str, contract: Contract, count: int) -> nn.Module:
        if graph == contracts.EMBED:
            return self._tower.embed()
        if graph == contracts.SELECT:
            return Select(count)
        if graph == contracts.PROJECT:
            return self._tower.project()
        for scoring in SCORINGS:
            if graph == contracts.prune_graph(scoring):
                return Prune(scoring, count)
        block = int(graph.rpartition("_")[2])
        keys = contract is contracts.KEYS_CONTRACT
        return self._tower.keys(block) if keys else self._tower.update(block)
