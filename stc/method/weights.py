"""A vision tower's weights in numpy, by their Hugging Face names, with the layers they fill.

Matrices keep Hugging Face's orientation, [fan_out, fan_in].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]


def gelu(x: Array) -> Array:
    """The exact gelu, x * Phi(x)."""
    activated: Array = (x * (0.5 + 0.5 * _erf(x / math.sqrt(2)))).astype(x.dtype)
    return activated


def gelu_tanh(x: Array) -> Array:
    """The tanh form of gelu."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    activated: Array = 0.5 * x * (1 + np.tanh(inner))
    return activated


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
}
"""Activations by their Hugging Face name."""


@dataclass(frozen=True)
class Affine:
    """`x @ weight.T + bias`: weight [fan_out, fan_in], bias [fan_out] or None."""

    weight: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        product: Array = x @ self.weight.T
        return product if self.bias is None else product + self.bias


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the last axis."""

    weight: Array
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        normed: Array = centred / np.sqrt(variance + self.eps) * self.weight + self.bias
        return normed


@dataclass(frozen=True)
class EmbedWeights:
    """patch [C, 3, p, p], bias [C], position [T, C]."""

    patch: Array
    bias: Array
    position: Array


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """One block: its layers, H heads, and its MLP's activation (a name in ACTIVATIONS)."""

    heads: int
    activation: str
    norm1: Norm
    query: Affine
    key: Affine
    value: Affine
    out: Affine
    norm2: Norm
    fc1: Affine
    fc2: Affine


@dataclass(frozen=True)
class TowerWeights:
    """Embedding and blocks of a tower."""

    embed: EmbedWeights
    blocks: tuple[BlockWeights, ...]

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        *,
        heads: int,
        blocks: int,
        activation: str = "gelu_pytorch_tanh",
        eps: float = 1e-6,
        prefix: str = "",
        dtype: DTypeLike = np.float32,
    ) -> TowerWeights:
        """The first `blocks` blocks of a SiglipVisionModel.

        `prefix` stands before every Hugging Face name in `tensors`. Raises KeyError for a
        missing tensor.
        """
        tower = _Tensors(tensors, prefix, dtype)

        def block(number: int) -> BlockWeights:
            layers = _Tensors(tensors, f"{prefix}encoder.layers.{number}.", dtype)
            return BlockWeights(
                heads=heads,
                activation=activation,
                norm1=layers.norm("layer_norm1", eps),
                query=layers.affine("self_attn.q_proj"),
                key=layers.affine("self_attn.k_proj"),
                value=layers.affine("self_attn.v_proj"),
                out=layers.affine("self_attn.out_proj"),
                norm2=layers.norm("layer_norm2", eps),
                fc1=layers.affine("mlp.fc1"),
                fc2=layers.affine("mlp.fc2"),
            )

        return cls(
            EmbedWeights(
                tower["embeddings.patch_embedding.weight"],
                tower["embeddings.patch_embedding.bias"],
                tower["embeddings.position_embedding.weight"],
            ),
            tuple(map(block, range(blocks))),
        )


@dataclass(frozen=True)
class ProjectorWeights:
    """The two layers between tower and language model, and the activation between them."""

    linear_1: Affine
    linear_2: Affine
    activation: str = "gelu"

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Array],
        *,
        activation: str = "gelu",
        prefix: str = "",
        dtype: DTypeLike = np.float32,
    ) -> ProjectorWeights:
        """A LLaVA projector's weights; biases are optional.

        Raises KeyError for a missing weight.
        """
        layers = _Tensors(tensors, prefix, dtype)
        return cls(layers.affine("linear_1"), layers.affine("linear_2"), activation)


@dataclass(frozen=True)
class _Tensors:
    """Tensors under `prefix`, in `dtype`."""

    tensors: Mapping[str, Array]
    prefix: str
    dtype: DTypeLike

    def __getitem__(self, name: str) -> Array:
        return self.tensors[self.prefix + name].astype(self.dtype)

    def affine(self, layer: str) -> Affine:
        has_bias = f"{self.prefix}{layer}.bias" in self.tensors
        return Affine(self[f"{layer}.weight"], self[f"{layer}.bias"] if has_bias else None)

    def norm(self, layer: str, eps: float) -> Norm:
        return Norm(self[f"{layer}.weight"], self[f"{layer}.bias"], eps)
