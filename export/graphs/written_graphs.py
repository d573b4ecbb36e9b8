"""Graphs that stand in a folder, run by ONNX Runtime: the side that is compared with torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stc.contracts import Contract
from stc.export.graphs.check import GraphCheck
from stc.manifest import Precision
from stc.program import Arrays


class WrittenGraphs:
    """A side of `stc.program`. Inputs are float32, whatever the graphs' precision.

    checks: the graphs that are loaded, from a graph's first run until `end`.
    """

    def __init__(
        self, folder: Path, precision: Precision, contracts: Mapping[str, Contract]
    ) -> None:
        self.precision: Precision = precision
        self.checks: dict[str, GraphCheck] = {}
        self._folder = folder
        self._contracts = contracts

    def run(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        if graph not in self.checks:
            path = self._folder / f"{graph}.onnx"
            self.checks[graph] = GraphCheck(path, self._contracts[graph], self.precision)
        return self.checks[graph].run(inputs)

    def end(self, graph: str) -> None:
        self.checks.pop(graph, None)
