"""The operators a bundle's graphs may have: what is exported, and what is loaded again.

None of them has subgraphs, loops or state, and none makes a tensor of a size that it is told.
"""

from __future__ import annotations

from typing import Any, Final

from stc.onnx_files.onnx_file import Operator

PORTABLE_OPS: Final = frozenset(
    """
    Add Cast Clip Concat Conv Cos Div Erf Exp Gather Gemm LayerNormalization MatMul Max Min Mul Neg
    Pow ReduceMean ReduceSum Reshape ScatterND Shape Sigmoid Sin Softmax Split Sqrt Squeeze
    Sub Tanh TopK Transpose Unsqueeze
    """.split()
)
"""Operators of ONNX itself that every supported runtime computes alike."""

RUNTIME_DOMAIN: Final = "com.microsoft"
KEY_ROTATION: Final = "RotaryEmbedding"
INT4_PRODUCT: Final = "MatMulNBits"
"""Operators of ONNX Runtime's own."""

OWN_ATTRIBUTES: Final[dict[str, dict[str, Any]]] = {
    KEY_ROTATION: {"interleaved": 0},
    # Inputs are rounded to int8 by group inside the product: four times as fast as float32.
    INT4_PRODUCT: {"bits": 4, "accuracy_level": 4},
}
"""Their attributes that are alike in every graph, all of them integers."""
INT4_SIZES: Final = ("K", "N", "block_size")
"""The others of INT4_PRODUCT: fan-in, fan-out and values that share a scale."""

PORTABLE: Final[frozenset[Operator]] = frozenset(("", name) for name in PORTABLE_OPS)
"""What a bundle's own graphs may have."""
EXTENDED: Final = PORTABLE | {(RUNTIME_DOMAIN, name) for name in OWN_ATTRIBUTES}
"""What graphs of a variant may have."""
