"""The graphs of a bundle as PyTorch modules on numpy arrays: the side a bundle is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stc.contracts import COUNT, Contract
from stc.errors import ExportError
from stc.method.difference import rounded_otherwise
from stc.program import Arrays

Made = Callable[[str, nn.Module, tuple[Tensor, ...], int], None]
"""Told of a graph's module, its first inputs and its count before it computes in float32."""


class TorchGraphs:
    """Runs the modules that `make` makes of a graph's name and its count, float32.

    A module is in memory from its graph's first run until `end`. With `half` its inputs are those
    that a float16 network's ports receive.
    """

    def __init__(
        self,
        contracts: Mapping[str, Contract],
        make: Callable[[str, int], nn.Module],
        *,
        half: bool = False,
        made: Made = lambda *_: None,
    ) -> None:
        self._contracts = contracts
        self._make = make
        self._half = half
        self._made = made
        self._held: dict[tuple[str, int], nn.Module] = {}

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]], rounding: float = 0.0) -> Arrays:
        """The outputs of `graph` for `inputs`, by the contract's names.

        Every float input is moved to where `rounding` might as well have put it. Raises ExportError
        for a graph that the checkpoint does not have.
        """
        if graph not in self._contracts:
            raise ExportError(graph, "no such graph in this checkpoint")
        tensors = []
        for port in self._contracts[graph].inputs:
            if port.name == COUNT:
                continue
            array = inputs[port.name]
            if port.dtype == "network":
                array = array.astype(np.float16) if self._half else array
                array = array.astype(np.float32)
            if rounding and array.dtype.kind == "f":
                array = rounded_otherwise(array, rounding)
            tensors.append(torch.from_numpy(np.ascontiguousarray(array)))
        count = int(inputs[COUNT][0]) if COUNT in inputs else 0
        if (graph, count) not in self._held:
            module = self._make(graph, count)
            self._made(graph, module, tuple(tensors), count)
            self._held[graph, count] = module.float()
        with torch.inference_mode():
            result = self._held[graph, count](*tensors)
        outputs = result if isinstance(result, tuple) else (result,)
        names = (port.name for port in self._contracts[graph].outputs)
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    def end(self, graph: str) -> None:
        """Its modules leave memory."""
        for key in [key for key in self._held if key[0] == graph]:
            del self._held[key]
