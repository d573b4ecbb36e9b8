"""How an engine computes attention, changed in its network: the rungs of `library.LADDER`.

TensorRT makes one kernel of a graph's attention where it can, which saves most of a block's memory
traffic. Versions of it computed wrongly in that kernel (issues 4837, 4647, 4826), and fp16 SigLIP
towers lost accuracy without it too (4373, 3908, 2709). An engine that deviates from ONNX Runtime is
built again, one rung further down. Norms and softmax are float32 in the graph already.

Networks are strongly typed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stc.engines.library.library import Attention


def change_attention(trt: Any, network: Any, attention: Attention) -> int:
    """`network`, as it was parsed, computes attention in the way of `attention`; how many of its
    layers were changed."""
    if attention == "fused":
        return 0
    if attention == "unfused":
        return unfuse_attention(trt, network)
    return widen_attention(trt, network)


def unfuse_attention(trt: Any, network: Any) -> int:
    """No softmax is part of a kernel with the products around it; their number.

    The compiler knows attention by what follows what. Here the least of a share and 1, which is the
    share itself, stands between softmax and the product with the values.
    """
    kinds = {trt.DataType.FLOAT: np.float32, trt.DataType.HALF: np.float16}
    layers = _layers(network)
    found = [layer for layer in layers if layer.type == trt.LayerType.SOFTMAX]
    for layer in found:
        shares = layer.get_output(0)
        readers = _readers(layers, shares)
        one = np.ones((1,) * len(shares.shape), kinds[shares.dtype])
        bound = network.add_constant(one.shape, trt.Weights(one)).get_output(0)
        least = network.add_elementwise(shares, bound, trt.ElementWiseOperation.MIN)
        for reader, index in readers:
            reader.set_input(index, least.get_output(0))
    return len(found)


def widen_attention(trt: Any, network: Any) -> int:
    """Each of attention's products, of two computed tensors, multiplies in float32; their number.

    A product's inputs are cast up, and its result is cast back for whoever wants it narrow: a
    softmax in float32 does not. Products with a weight are left alone.
    """
    wanted = trt.DataType.FLOAT
    layers = _layers(network)
    constants = {
        layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.CONSTANT
    }
    products = [
        layer
        for layer in layers
        if layer.type == trt.LayerType.MATRIX_MULTIPLY
        and not constants.intersection(layer.get_input(index).name for index in range(2))
    ]
    for product in products:
        narrow = product.get_output(0)
        readers, dtype = _readers(layers, narrow), narrow.dtype
        for index in range(2):
            wide = network.add_cast(product.get_input(index), wanted)
            product.set_input(index, wide.get_output(0))
        result = product.get_output(0)
        back = network.add_cast(result, dtype).get_output(0)
        for layer, index in readers:
            widens = layer.type == trt.LayerType.CAST and layer.get_output(0).dtype == wanted
            layer.set_input(index, result if widens else back)
    return len(products)


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _readers(layers: list[Any], tensor: Any) -> list[tuple[Any, int]]:
    """Those of `layers` that read `tensor`, and as which of their inputs."""
    return [
        (layer, index)
        for layer in layers
        for index in range(layer.num_inputs)
        if layer.get_input(index) is not None and layer.get_input(index).name == tensor.name
    ]
