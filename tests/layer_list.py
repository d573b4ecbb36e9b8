"""What TensorRT-RTX's compiler makes of a graph, as it says itself: its final list of layers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import nn

from stc.contracts import Contract
from stc.engines.build.attention import change_attention
from stc.engines.library.library import Attention
from stc.engines.library.targets import load_tensorrt
from stc.export.graphs.trace import FreeAxis, trace

ELEMENT_BYTES = {"Half": 2, "Float": 4, "Int32": 4, "Int64": 8, "Bool": 1}
_TENSOR = re.compile(r"Name: ([^,{}]*), Dimensions: \[([\d,]*)\], Strides: [^{}]*?Datatype: (\w+)")
_SECTION = re.compile(r"(Inputs|Constants|Outputs): \[|, (?:TacticName|StreamId): ")


@dataclass(frozen=True)
class Layer:
    """One kernel. inputs: names of what it reads; size_bytes: of all it reads and writes."""

    name: str
    inputs: tuple[str, ...]
    size_bytes: int

    @property
    def fused_attention(self) -> bool:
        """Whether it is attention as a whole."""
        return "mha" in self.name


def layers_of(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    capability: str,
    attention: Attention = "fused",
) -> list[Layer]:
    """The layers of `model` for GPUs of `capability`, such as SM86; inputs that have free axes are
    of `shapes`. attention: as engines are rebuilt when they deviate."""
    trt: Any = load_tensorrt("tensorrt-rtx").module
    lines: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            lines.append(msg)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(model.SerializeToString()), lines[-3:]
    change_attention(trt, network, attention)
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    if attention != "tf32":
        config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    if shapes:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, lines[-3:]
    (listed,) = (line for line in lines if line.startswith("Layers:"))
    return [_layer(row) for row in listed.splitlines() if row.startswith("Name: ")]


def _layer(row: str) -> Layer:
    before, *pieces = _SECTION.split(row)
    name = before.removeprefix("Name: ").partition(", LayerType: ")[0]
    inputs: list[str] = []
    size = 0
    for section, text in zip(pieces[::2], pieces[1::2], strict=True):
        for tensor, dimensions, dtype in _TENSOR.findall(text) if section else ():
            axes = map(int, filter(None, dimensions.split(",")))
            size += math.prod(axes) * ELEMENT_BYTES[dtype]
            inputs += [tensor] if section == "Inputs" else []
    return Layer(name, tuple(inputs), size)


def half_graph(
    module: nn.Module, contract: Contract, sizes: Mapping[str, int], free: Sequence[str] = ()
) -> onnx.ModelProto:
    """`module`, made for float16, as a graph whose weights are its own random ones.

    sizes: of the contract's axes; `free` ones may have another in an engine.
    """
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.02, generator=random)
    example = []
    for port in contract.inputs:
        shape = [sizes[symbol] for symbol in port.shape]
        numbers = torch.randn(shape, generator=random)
        if port.dtype == "int64":
            numbers = torch.arange(numbers.numel()).reshape(shape)
        example.append(numbers.half() if port.dtype == "network" else numbers)
    axes = tuple(FreeAxis(symbol, 4096) for symbol in free)
    model = trace(module, contract, tuple(example), axes)
    parameters = dict(module.named_parameters())
    for initializer in model.graph.initializer:
        if initializer.name in parameters:
            initializer.raw_data = parameters[initializer.name].numpy().tobytes()
    return model
