"""Rotary of the cached keys as ONNX Runtime's own operator, in graphs that only it reads.

Written out, the rotation of S cached rows takes eleven passes over them and two over their angles,
and costs a decoded token more than its products in four bits do (docs/log.md). RotaryEmbedding is
one pass, with the angles' cosines and sines looked up.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stc.contracts import KEY_POSITIONS, KEYS
from stc.errors import ExportError
from stc.export.graphs.trace import ELEMENT_TYPES
from stc.manifest import LanguageSpec
from stc.onnx_files.operators import KEY_ROTATION, OWN_ATTRIBUTES, RUNTIME_DOMAIN

COSINES, SINES = "rotary.cosines", "rotary.sines"
_FIRST, _ZERO = "rotary.first_axis", "rotary.zero"


def table_rows(spec: LanguageSpec) -> int:
    """Rows of the tables: a context has more rows than the model positions where some are empty,
    and the operator wants one for each."""
    return spec.max_positions + spec.max_positions // 4


def rotation_tables(spec: LanguageSpec) -> dict[str, NDArray[np.floating]]:
    """COSINES and SINES float32 [table_rows, e/2] of every position of the model."""
    half = np.arange(0, spec.head_width, 2, dtype=np.float32) / np.float32(spec.head_width)
    frequency = (np.float32(spec.rotary_base) ** -half).astype(np.float32)
    angles = np.arange(table_rows(spec), dtype=np.float32)[:, None] * frequency
    return {COSINES: np.cos(angles), SINES: np.sin(angles)}


def fuse_key_rotation(model: onnx.ModelProto, spec: LanguageSpec) -> None:
    """The keys of `model`, an `attend` graph, are rotated by RotaryEmbedding.

    Its tables are initialisers without values. Raises ExportError where the written-out rotation
    is not found.
    """
    graph = model.graph
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] == KEYS]
    (keys,) = {node.output[0] for node in casts} or {KEYS}
    splits = [node for node in graph.node if node.op_type == "Split" and node.input[0] == keys]
    halves = {half for split in splits for half in split.output}
    products = {node.output[0] for node in graph.node if halves.intersection(node.input)}
    sums = {node.output[0] for node in graph.node if products.intersection(node.input)}
    joined = [n for n in graph.node if n.op_type == "Concat" and set(n.input) == sums]
    if len(joined) != 1:
        raise ExportError(graph.name, "rotation of its keys not found", "Split, products, Concat")
    place = list(graph.node).index(joined[0])
    fused = [
        # A row of position -1 is empty: nobody sees how it is turned.
        helper.make_node("Max", [KEY_POSITIONS, _ZERO], ["rotary.positions"]),
        helper.make_node("Unsqueeze", ["rotary.positions", _FIRST], ["rotary.position_ids"]),
        helper.make_node("Unsqueeze", [keys, _FIRST], ["rotary.keys"]),
        helper.make_node(
            KEY_ROTATION,
            ["rotary.keys", "rotary.position_ids", COSINES, SINES],
            ["rotary.turned"],
            domain=RUNTIME_DOMAIN,
            **OWN_ATTRIBUTES[KEY_ROTATION],
        ),
        helper.make_node("Squeeze", ["rotary.turned", _FIRST], list(joined[0].output)),
    ]
    nodes = [*graph.node[:place], *fused, *graph.node[place + 1 :]]
    alive = _alive(nodes, {output.name for output in graph.output})
    read = {name for node in alive for name in node.input}
    stored = [one for one in graph.initializer if one.name in read]
    for field, left in (("node", alive), ("initializer", stored)):
        graph.ClearField(field)
        getattr(graph, field).extend(left)
    if RUNTIME_DOMAIN not in {one.domain for one in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
    dims = (table_rows(spec), spec.head_width // 2)
    for name in (COSINES, SINES):
        graph.initializer.append(
            TensorProto(name=name, data_type=ELEMENT_TYPES["float32"], dims=dims)
        )
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), _FIRST))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), _ZERO))


def _alive(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` that `wanted` tensors depend on, in their order."""
    alive = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            alive.append(node)
    return alive[::-1]
