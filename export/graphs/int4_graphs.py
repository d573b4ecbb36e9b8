"""The language graphs a second time, with four-bit matrices, beside those of full precision.

As only ONNX Runtime reads them, they are products by its operator MatMulNBits, and it rotates
their cached keys by an operator of its own too. Matrices are quantised by groups along the fan-in,
rounded to nearest, symmetric: the value farthest from zero of every group is exact. Norms, biases
and the embedding keep the network's precision.

Each is checked against torch with the very matrices its codes stand for, so that the check sees
wrong graphs and not the rounding of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor, nn

from stc.contracts import HEAD, HEAD_CONTRACT, Contract
from stc.export.decoders.qwen2.key_rotation import fuse_key_rotation, rotation_tables
from stc.export.graphs.check import GraphCheck
from stc.export.graphs.trace import ELEMENT_TYPES, bind
from stc.export.graphs.vision import INT4, graph_file
from stc.export.graphs.weights_file import Span, WeightsFile
from stc.manifest import GRAPHS, Group, LanguageSpec, Precision
from stc.onnx_files.operators import INT4_PRODUCT, OWN_ATTRIBUTES, RUNTIME_DOMAIN
from stc.ports import NETWORK_DTYPES

OPERATOR, DOMAIN = INT4_PRODUCT, RUNTIME_DOMAIN
ZERO = 8
"""The code of zero."""

CODES, SCALES = ".codes", ".scales"
"""Endings of what stands in a matrix' place."""
INT4_WEIGHTS = f"{GRAPHS}/language_{INT4}.bin"
RELATIVE_L2 = 3e-2
"""Largest allowed distance from torch: MatMulNBits rounds its inputs to int8."""

Inputs = tuple[Tensor, ...]


@dataclass
class Int4Writer:
    """Writes graphs into `folder` as those of the variant, their weights into `weights`."""

    folder: Path
    weights: WeightsFile
    precision: Precision
    group: Group
    spec: LanguageSpec
    _templates: dict[str, onnx.ModelProto] = field(default_factory=dict)
    _tables: dict[str, Span] = field(default_factory=dict)

    def write(
        self,
        name: str,
        module: nn.Module,
        contract: Contract,
        template: onnx.ModelProto,
        inputs: Iterable[Inputs],
        *,
        kind: str,
        keys: Mapping[str, str],
    ) -> None:
        """Graph `name` stands beside `template`'s own and equals torch on all `inputs`.

        Afterwards `module` has the matrices that the codes stand for. Raises ExportError.
        """
        parameters = dict(module.named_parameters())
        matrices = {
            parameter: (value.shape[0], value.shape[1])
            for parameter, value in parameters.items()
            if value.ndim == 2
        }
        if kind not in self._templates:
            network = NETWORK_DTYPES[self.precision].name
            packed = int4_template(template, matrices, self.group, network)
            if kind == "attend":
                fuse_key_rotation(packed, self.spec)
                for table, values in rotation_tables(self.spec).items():
                    self._tables[table] = self.weights.add(table, values)
            self._templates[kind] = packed
        spans = dict(self._tables) if kind == "attend" else {}
        for parameter, value in parameters.items():
            key = keys[parameter]
            if parameter not in matrices:
                spans[parameter] = self.weights.add(key, self._stored(parameter, value))
                continue
            codes, scales = quantise(value.numpy(), self.group)
            scales = self._scales(scales)
            spans[parameter + CODES] = self.weights.add(key + CODES, codes)
            spans[parameter + SCALES] = self.weights.add(key + SCALES, scales)
            value.data = torch.from_numpy(dequantise(codes, scales, value.shape[0]))
        check = self._finish(name, contract, self._templates[kind], spans)
        for one in inputs:
            check.compare(module, one)

    def write_head(
        self,
        template: onnx.ModelProto,
        norm: nn.Module,
        table: Iterator[NDArray[np.float32]],
        hidden: Tensor,
    ) -> None:
        """The head, whose matrix comes in slices `table` of rows [V, D] and is read once."""
        (width,) = (value.shape[0] for value in norm.parameters())
        scales: list[NDArray[np.floating]] = []
        logits: list[Tensor] = []
        normed = norm(hidden)

        def codes() -> Iterator[NDArray[np.uint8]]:
            for part in table:
                coded, scaled = quantise(part.T, self.group)
                scales.append(self._scales(scaled))
                logits.append(normed @ torch.from_numpy(dequantise(coded, scales[-1], width)))
                yield coded

        spans = {"weight" + CODES: self.weights.add_parts(HEAD + CODES, codes())}
        spans["weight" + SCALES] = self.weights.add_parts(HEAD + SCALES, scales)
        for name, value in norm.named_parameters():
            spans[f"norm.{name}"] = self.weights.add(f"{HEAD}.{name}", value.numpy())
        expected = torch.cat(logits, dim=1)
        matrices = {"weight": (width, expected.shape[1])}
        coded_template = int4_template(
            template, matrices, self.group, NETWORK_DTYPES[self.precision].name
        )
        check = self._finish(HEAD, HEAD_CONTRACT, coded_template, spans)
        check.compare(_Given(expected), (hidden,))

    def _finish(
        self, name: str, contract: Contract, template: onnx.ModelProto, spans: Mapping[str, Span]
    ) -> GraphCheck:
        model = bind(template, name, spans, self.weights.path.name, own=True)
        path = self.folder / graph_file(name, INT4)
        path.write_bytes(model.SerializeToString())
        # Without prepacking MatMulNBits would not round its inputs.
        return GraphCheck(path, contract, self.precision, RELATIVE_L2, prepack=True)

    def _scales(self, scales: NDArray[np.float32]) -> NDArray[np.floating]:
        return scales.astype(np.float16) if self.precision == "fp16" else scales

    def _stored(self, parameter: str, value: Tensor) -> NDArray[np.generic]:
        # Norms stay float32 in every precision.
        half = self.precision == "fp16" and "norm" not in parameter
        array: NDArray[np.generic] = (value.half() if half else value).numpy()
        return array


class _Given(nn.Module):
    """Gives `outputs` whatever comes in."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self._outputs = outputs

    def forward(self, hidden: Tensor) -> Tensor:
        return self._outputs


def quantise(
    matrix: NDArray[np.float32], group: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """codes [fan_out, groups, group / 2] and scales [fan_out * groups] of [fan_in, fan_out].

    A byte holds two values, the first in its low half; a last group that is not full ends in
    zeros.
    """
    fan_in, fan_out = matrix.shape
    groups = -(-fan_in // group)
    padded = np.zeros((fan_out, groups * group), np.float32)
    padded[:, :fan_in] = matrix.T
    values = padded.reshape(fan_out, groups, group)
    farthest = np.take_along_axis(values, np.abs(values).argmax(-1)[..., None], -1)
    scales: NDArray[np.float32] = (farthest / -ZERO).astype(np.float32)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(values * inverse) + ZERO, 0, 15).astype(np.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scales.reshape(-1)


def dequantise(
    codes: NDArray[np.uint8], scales: NDArray[np.floating], fan_in: int
) -> NDArray[np.float32]:
    """The matrix [fan_in, fan_out] that `codes` and `scales` stand for."""
    fan_out, groups, half = codes.shape
    values = np.empty((fan_out, groups, 2 * half), np.float32)
    values[..., 0::2] = codes & 15
    values[..., 1::2] = codes >> 4
    values = (values - ZERO) * scales.astype(np.float32).reshape(fan_out, groups, 1)
    return np.ascontiguousarray(values.reshape(fan_out, -1)[:, :fan_in].T)


def int4_template(
    template: onnx.ModelProto, matrices: Mapping[str, tuple[int, int]], group: int, network: str
) -> onnx.ModelProto:
    """A copy of `template` whose products with `matrices` read codes and scales.

    `matrices` gives fan_in and fan_out by name; `network` is the dtype of the scales.
    """
    model = onnx.ModelProto()
    model.CopyFrom(template)
    graph = model.graph
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in matrices:
            continue
        matrix = node.input[1]
        fan_in, fan_out = matrices[matrix]
        node.CopyFrom(
            onnx.helper.make_node(
                OPERATOR,
                [node.input[0], matrix + CODES, matrix + SCALES],
                list(node.output),
                name=node.name,
                domain=DOMAIN,
                K=fan_in,
                N=fan_out,
                block_size=group,
                **OWN_ATTRIBUTES[OPERATOR],
            )
        )
    kept = [one for one in graph.initializer if one.name not in matrices]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for name, (fan_in, fan_out) in matrices.items():
        groups = -(-fan_in // group)
        for ending, kind, dims in (
            (CODES, TensorProto.UINT8, (fan_out, groups, group // 2)),
            (SCALES, ELEMENT_TYPES[network], (fan_out * groups,)),
        ):
            graph.initializer.append(TensorProto(name=name + ending, data_type=kind, dims=dims))
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model
