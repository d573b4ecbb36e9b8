"""Is a written graph equal to its torch module? Asked of every graph right after it is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stc.contracts import Contract, Port
from stc.difference import Difference, difference
from stc.errors import ExportError
from stc.manifest import Precision
from stc.whole_model import ROUNDING

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

    def compare(
        self, module: nn.Module, inputs: tuple[Tensor, ...], extra: Mapping[str, int] | None = None
    ) -> tuple[Tensor, ...]:
        """torch's outputs for `inputs`, after proving that the graph's are equal.

        `extra` gives values for ports that torch's module has as attributes (`count`).
        Raises ExportError naming graph, output and largest difference.
        """
        feed: dict[str, NDArray[np.generic]] = {
            name: np.array([value], np.int64) for name, value in (extra or {}).items()
        }
        ports = [port for port in self.contract.inputs if port.name not in feed]
        if self.precision == "fp16":
            inputs = tuple(map(rounded, ports, inputs))
        expected = _outputs(module, inputs)
        for port, tensor in zip(ports, inputs, strict=True):
            feed[port.name] = self._cast(port.dtype, tensor)
        got = self._session.run(None, feed)
        for number, port in enumerate(self.contract.outputs):
            torch_value, graph_value = expected[number].numpy(), np.asarray(got[number])
            found = self._judge(port.name, torch_value, graph_value)
            if found is None or found.relative_l2 <= self.limit:
                continue
            moved = _outputs(module, tuple(map(self._rounded_otherwise, inputs)))[number]
            rounding = difference(torch_value, moved.numpy()).relative_l2
            if not found.relative_l2 <= ROUNDINGS * rounding:
                raise ExportError(
                    f"{self.graph}: {port.name}",
                    f"differs from torch by {found.max_abs:.3g} at most and "
                    f"{found.relative_l2:.3g} relative L2",
                    f"at most {max(self.limit, ROUNDINGS * rounding):.3g} relative L2",
                    "please report it with the versions in `pip list`",
                )
        return expected

    def _cast(self, dtype: str, tensor: Tensor) -> NDArray[np.generic]:
        half = dtype == "network" and self.precision == "fp16"
        array: NDArray[np.generic] = (tensor.half() if half else tensor).numpy()
        return array

    def _rounded_otherwise(self, tensor: Tensor) -> Tensor:
        """`tensor` with every float moved to where rounding might as well have put it."""
        if not tensor.is_floating_point():
            return tensor
        random = torch.Generator().manual_seed(0)
        ways = torch.rand(tensor.shape, generator=random) - 0.5
        return tensor * (1.0 + ROUNDING[self.precision] * ways)

    def _judge(
        self, output: str, torch_value: NDArray[np.generic], got: NDArray[np.generic]
    ) -> Difference | None:
        """How far `got` is from torch's floats; None of indices, which are equal.

        Raises ExportError for another shape, other indices, NaN or infinity.
        """
        if got.shape != torch_value.shape:
            raise ExportError(
                f"{self.graph}: {output}", f"shape {got.shape}", f"{torch_value.shape} as in torch"
            )
        if torch_value.dtype.kind == "i":
            if not np.array_equal(got, torch_value):
                raise ExportError(f"{self.graph}: {output}", "other indices", "torch's")
            return None
        if not np.isfinite(got).all():
            half = self.precision == "fp16"
            raise ExportError(
                f"{self.graph}: {output}",
                "NaN or infinity",
                "finite numbers",
                "use --precision fp32" if half else "check the weights",
            )
        return difference(torch_value, got)


def open_graph(path: Path, *, prepack: bool = False) -> Any:
    """The ONNX Runtime session of a written graph; `prepack` as `GraphCheck` has it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # A graph runs a few times: copies of its weights would not pay.
    options.add_session_config_entry("session.disable_prepacking", str(int(not prepack)))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        result = module(*inputs)
    return result if isinstance(result, tuple) else (result,)


def rounded(port: Port, tensor: Tensor) -> Tensor:
    """`tensor` as a float16 network's `port` receives it, still float32."""
    return tensor.half().float() if port.dtype == "network" else tensor
