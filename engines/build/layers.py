"""One graph becomes the list of kernels that the compiler makes of it; the engine is thrown away.

Compiled the same way as the engine that stc-build keeps, at one set of sizes. The multiply-
accumulates are counted in the network that was parsed, so they do not depend on what the compiler
makes of it; its list says which kernel does them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from stc.contracts import COUNT
from stc.engines.build.compile import Recipe, Report, Watcher, compile_engine
from stc.engines.build.kernels import (
    Kernel,
    LayerListError,
    message_of,
    onnx_nodes,
    read_kernels,
    with_macs,
)
from stc.engines.library.plan import shape_at
from stc.engines.library.targets import TensorRt
from stc.errors import EngineError

_SCRATCH = re.compile(r"Total Activation Memory: (\d+)")
_PRODUCTS = 2
"""Of an attention: queries with keys, and what the softmax makes of them with values."""


@dataclass(frozen=True)
class EngineLayers:
    """What the compiler made of a graph at one set of sizes.

    scratch_bytes: memory a run needs besides inputs and outputs; None where it was not told.
    attentions: softmaxes of the graph; fused: how many became one kernel with their products.
    """

    kernels: tuple[Kernel, ...]
    scratch_bytes: int | None
    attentions: int
    fused: int


def list_layers(tensorrt: TensorRt, recipe: Recipe, report: Report) -> EngineLayers:
    """What the compiler makes of `recipe`, whose spec has one set of sizes.

    Raises EngineError naming the graph: it cannot be compiled, or TensorRT does not list its layers
    as it is known to.
    """
    seen = _Network(tensorrt, recipe)
    compile_engine(tensorrt, recipe, report, seen)
    inputs = {port.name for port in recipe.graph.inputs}
    try:
        kernels = read_kernels(message_of(iter(seen.messages)), inputs)
        kernels = with_macs(kernels, seen.macs)
    except LayerListError as error:
        raise EngineError(
            recipe.spec.graph,
            f"the layers {tensorrt.flavour} {tensorrt.version} made of it cannot be read: {error}",
            "",
            f"use another version of {tensorrt.flavour}, and report it with this line",
        ) from error
    scratch = [int(found) for one in seen.messages for found in _SCRATCH.findall(one)]
    return EngineLayers(
        tuple(kernels),
        max(scratch, default=None),
        len(seen.softmaxes),
        sum(_is_fused(node, kernels, seen.macs.keys()) for node in seen.softmaxes),
    )


def _is_fused(softmax: str, kernels: list[Kernel], products: Any) -> bool:
    """Whether one kernel has the softmax and both products of its attention."""
    homes = [kernel for kernel in kernels if softmax in kernel.nodes]
    return any(one.is_attention or len(products & set(one.nodes)) >= _PRODUCTS for one in homes)


class _Network(Watcher):
    """The network at its sizes: `macs` by ONNX node, and the nodes that are `softmaxes`."""

    def __init__(self, tensorrt: TensorRt, recipe: Recipe) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self.softmaxes: list[str] = []
        self._trt = tensorrt.module
        self._recipe = recipe

    def see(self, network: Any) -> None:
        trt, (sizes,) = self._trt, self._recipe.spec.profiles
        shapes = {port.name: port.shape for port in self._recipe.graph.inputs if port.name != COUNT}
        for index in range(network.num_inputs):
            entry = network.get_input(index)
            entry.shape = shape_at(shapes[entry.name], sizes)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            name = next(iter(onnx_nodes(layer.metadata)), layer.name)
            if layer.type == trt.LayerType.SOFTMAX:
                self.softmaxes.append(name)
            elif layer.type == trt.LayerType.MATRIX_MULTIPLY:
                self._count(name, layer, _inner(trt, layer))
            elif layer.type == trt.LayerType.CONVOLUTION:
                layer.__class__ = trt.IConvolutionLayer  # the bindings hand out ILayer
                channels = layer.get_input(0).shape[1] // layer.num_groups
                self._count(name, layer, channels * math.prod(layer.kernel_size_nd))

    def _count(self, name: str, layer: Any, inner: int) -> None:
        made = tuple(layer.get_output(0).shape)
        if min(made) < 0:
            got = f"{name} has shape {made} though all inputs have sizes"
            raise EngineError(self._recipe.spec.graph, got, "sizes", "export the bundle again")
        self.macs[name] = self.macs.get(name, 0) + math.prod(made) * int(inner)


def _inner(trt: Any, layer: Any) -> int:
    """The length of the sums of a matrix product."""
    layer.__class__ = trt.IMatrixMultiplyLayer
    shape = layer.get_input(0).shape
    return int(shape[-2] if layer.op0 == trt.MatrixOperation.TRANSPOSE else shape[-1])
