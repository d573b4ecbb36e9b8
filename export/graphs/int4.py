"""Matrices in four bits: quantised by groups along the fan-in, for ONNX Runtime's MatMulNBits.

Only matrices change; norms, biases and the embedding keep the network's precision. Round to
nearest, symmetric: the value farthest from zero of every group is exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from stc.export.graphs.trace import ELEMENT_TYPES
from stc.onnx_files.operators import INT4_PRODUCT, OWN_ATTRIBUTES, RUNTIME_DOMAIN

OPERATOR, DOMAIN = INT4_PRODUCT, RUNTIME_DOMAIN
ZERO = 8
"""The code of zero."""

CODES, SCALES = ".codes", ".scales"
"""Endings of what stands in a matrix' place."""


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
