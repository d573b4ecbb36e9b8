"""Is a written graph equal to its torch module? Asked of every graph right after it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stc.contracts import Contract
from stc.errors import ExportError
from stc.export.graphs.torch_graphs import TorchGraphs
from stc.manifest import Precision
from stc.method.difference import ROUNDING, difference
from stc.program import Arrays

RELATIVE_L2 = {"fp32": 1e-5, "fp16": 1e-2}
"""Largest allowed |onnx - torch| / |torch| of an output; torch computes in float32."""
ROUNDINGS = 4.0
"""Allowed where RELATIVE_L2 is not enough: as many roundings of the inputs. Large values of a
trained network can ask for it; a wrong graph exceeds it."""


class GraphCheck:
    """One written graph, loaded once and compared on any number of inputs.

    `limit` is the largest relative L2 allowed, by default that of `precision`. With `prepack`
    weights are copied into another layout, which some operators need to compute as they will.
    """

    def __init__(
        self,
        path: Path,
        contract: Contract,
        precision: Precision,
        limit: float | None = None,
        *,
        prepack: bool = False,
    ) -> None:
        self.graph = path.stem
        self.contract = contract
        self.precision = precision
        self.limit = RELATIVE_L2[precision] if limit is None else limit
        self._session = open_graph(path, prepack=prepack)

    def compare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """torch's outputs for `inputs`, after proving that the graph's are equal.

        Raises ExportError naming graph, output and largest difference.
        """
        names = [port.name for port in self.contract.inputs]
        feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
        half = self.precision == "fp16"
        torch_graphs = TorchGraphs({self.graph: self.contract}, lambda *_: module, half=half)
        expected, got = torch_graphs.run(self.graph, feed), self.run(feed)
        for name, values in expected.items():
            self.judge(name, values, got[name], partial(torch_graphs.run, self.graph, feed))
        return tuple(map(torch.from_numpy, expected.values()))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """The graph's outputs for `inputs`, which are cast to what its ports receive."""
        feed = {}
        for port in self.contract.inputs:
            half = self.precision == "fp16" and port.dtype == "network"
            feed[port.name] = inputs[port.name].astype(np.float16) if half else inputs[port.name]
        names = [port.name for port in self.contract.outputs]
        return dict(zip(names, self._session.run(None, feed), strict=True))

    def judge(
        self,
        output: str,
        expected: NDArray[Any],
        got: NDArray[Any],
        moved: Callable[[float], Arrays],
    ) -> None:
        """`got` is what torch `expected`, up to rounding: `moved` are torch's outputs where inputs
        are rounded otherwise.

        Raises ExportError for another shape, NaN or infinity, or a difference.
        """
        where = f"{self.graph}: {output}"
        if got.shape != expected.shape:
            raise ExportError(where, f"shape {got.shape}", f"{expected.shape} as in torch")
        if not np.isfinite(got).all():
            fix = "use --precision fp32" if self.precision == "fp16" else "check the weights"
            raise ExportError(where, "NaN or infinity", "finite numbers", fix)
        found = difference(expected, got)
        if found.relative_l2 <= self.limit:
            return
        rounding = difference(expected, moved(ROUNDING[self.precision])[output]).relative_l2
        if not found.relative_l2 <= ROUNDINGS * rounding:
            raise ExportError(
                where,
                f"differs from torch by {found.max_abs:.3g} at most and "
                f"{found.relative_l2:.3g} relative L2",
                f"at most {max(self.limit, ROUNDINGS * rounding):.3g} relative L2",
                "please report it with the versions in `pip list`",
            )


def open_graph(path: Path, *, prepack: bool = False) -> Any:
    """The ONNX Runtime session of a written graph; `prepack` as `GraphCheck` has it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A graph runs a few times: copies of its weights would not pay.
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
