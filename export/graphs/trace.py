"""A torch module as an ONNX graph: traced once, then bound to the weights of any block.

All blocks of a tower have one structure, so one trace serves them all; only the references into
the weights file differ. Graphs are opset 18, ir_version 10, without functions, without stack
traces and without machine paths.

Knows nothing of checkpoints or bundles.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import torch
from onnx import TensorProto
from torch import Tensor, nn

from stc.contracts import COUNT, Contract
from stc.errors import ExportError
from stc.export.graphs.weights_file import Span
from stc.onnx_files.operators import EXTENDED, PORTABLE

OPSET = 18
IR_VERSION = 10

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
}


DATA_FIELDS = ("raw_data", "float_data", "int32_data", "external_data")
"""Where an initializer may keep its values."""


@dataclass(frozen=True)
class FreeAxis:
    """An axis whose size is chosen at run time: `symbol` of the contract, at most `most`."""

    symbol: str
    most: int


def trace(
    module: nn.Module,
    contract: Contract,
    example: tuple[Tensor, ...],
    free: tuple[FreeAxis, ...] = (),
) -> onnx.ModelProto:
    """`module` as a graph with the contract's port names; axes named as one of `free` are free.

    `example` holds one distinct tensor per input (a tensor passed twice would be merged).
    `module` itself is not changed; the graph's parameters have no values until `bind`.
    """
    stand_in = copy.deepcopy(module)
    # Parameters of equal values, such as two norms of ones, would be merged.
    for parameter in stand_in.parameters():
        parameter.data.normal_()
    return _traced(stand_in, contract, example, free)


def _traced(
    stand_in: nn.Module,
    contract: Contract,
    example: tuple[Tensor, ...],
    free: tuple[FreeAxis, ...],
) -> onnx.ModelProto:
    """What `trace` returns, of a module that is its own: nothing of it hangs on weights."""
    names = [port.name for port in contract.inputs if port.name != COUNT]
    sizes = {axis.symbol: torch.export.Dim(axis.symbol, min=2, max=axis.most) for axis in free}
    dynamic = tuple(
        {axis: sizes[symbol] for axis, symbol in enumerate(port.shape) if symbol in sizes}
        for port in contract.inputs
        if port.name != COUNT
    )
    with _quiet():
        program = torch.onnx.export(
            stand_in,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=[port.name for port in contract.outputs],
            dynamic_shapes=dynamic if any(dynamic) else None,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    parameters = {name for name, _ in stand_in.named_parameters()}
    for initializer in model.graph.initializer:
        if initializer.name in parameters:
            for field in DATA_FIELDS:
                initializer.ClearField(field)
    return model


def free_count(model: onnx.ModelProto, contract: Contract, default: int) -> None:
    """Turn the K of the graph's last two TopK into the input `count`, with `default` as value.

    Those two take the ranking's best and sort them; output axes of size K become free.
    """
    graph = model.graph
    ranked = [node for node in graph.node if node.op_type == "TopK"][-2:]
    for node in ranked:
        node.input[1] = COUNT
    read = {name for node in graph.node for name in node.input}
    for unread in [constant for constant in graph.initializer if constant.name not in read]:
        graph.initializer.remove(unread)
    graph.initializer.append(onnx.helper.make_tensor(COUNT, TensorProto.INT64, [1], [default]))
    graph.input.append(onnx.helper.make_tensor_value_info(COUNT, TensorProto.INT64, [1]))
    for value, port in zip(graph.output, contract.outputs, strict=True):
        for axis, symbol in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
            if symbol in ("M", "k"):
                axis.Clear()
                axis.dim_param = symbol


def bind(
    template: onnx.ModelProto,
    name: str,
    spans: Mapping[str, Span],
    location: str,
    *,
    own: bool = False,
) -> onnx.ModelProto:
    """A copy of `template` called `name`, its parameters read from `location` at `spans`.

    Raises ExportError for an operator that is not portable, nor ONNX Runtime's if `own`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(template)
    model.graph.name = name
    for initializer in model.graph.initializer:
        span = spans.get(initializer.name)
        if span is None:
            continue
        for field in DATA_FIELDS:
            initializer.ClearField(field)
        initializer.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", location),
            ("offset", str(span.offset)),
            ("length", str(span.length)),
        ):
            initializer.external_data.add(key=key, value=value)
    stored = {initializer.name for initializer in model.graph.initializer}
    if lost := set(spans) - stored:
        raise ExportError(name, f"the trace lost parameters {sorted(lost)}")
    operators = {(node.domain, node.op_type) for node in model.graph.node}
    if unknown := sorted(operator for _, operator in operators - (EXTENDED if own else PORTABLE)):
        raise ExportError(name, f"operators {unknown}", "the portable subset")
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Leave nothing in `model` that says where or from what source lines it was made."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "stc", "", ""
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    del graph.value_info[:]
    graph.doc_string = ""
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*graph.input, *graph.output]:
        del value.metadata_props[:]
        value.doc_string = ""
    for initializer in graph.initializer:
        del initializer.metadata_props[:]
        initializer.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself; it is not about the user's model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
