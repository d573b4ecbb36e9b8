"""Attention's matrix products in float32, in an otherwise float16 network.

The remedy for a block whose engine deviates from ONNX Runtime: fp16 SigLIP towers lost accuracy in
several TensorRT versions (issues 4373, 3908, 2709, 4647). Norms and softmax are float32 in the
graph already; what is left are the two products query x key and attention x value.
"""

from __future__ import annotations

from typing import Any


def widen_attention(trt: Any, network: Any) -> int:
    """Each product of two computed tensors multiplies in float32; the number of them.

    Its inputs are cast up, and its result is cast back for whoever wants it narrow: a softmax in
    float32 does not. Products with a weight are left alone. `network` is strongly typed.
    """
    wanted = trt.DataType.FLOAT
    layers = [network.get_layer(index) for index in range(network.num_layers)]
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
        readers = [
            (layer, index)
            for layer in layers
            for index in range(layer.num_inputs)
            if layer.get_input(index) is not None and layer.get_input(index).name == narrow.name
        ]
        dtype = narrow.dtype
        for index in range(2):
            wide = network.add_cast(product.get_input(index), wanted)
            product.set_input(index, wide.get_output(0))
        result = product.get_output(0)
        back = network.add_cast(result, dtype).get_output(0)
        for layer, index in readers:
            widens = layer.type == trt.LayerType.CAST and layer.get_output(0).dtype == wanted
            layer.set_input(index, result if widens else back)
    return len(products)
