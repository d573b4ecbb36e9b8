"""A vision tower's weights in numpy, with the layers they fill.

Matrices keep Hugging Face's orientation, [fan_out, fan_in].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import Grid

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
    """patch [C, 3, p, p], bias [C], position [T, C]; prefix [T - patches, C]: the prefix tokens."""

    patch: Array
    bias: Array
    position: Array
    prefix: Array


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """One block: its layers, H heads, its MLP's activation (a name in ACTIVATIONS), and how many
    of the tokens it scores are prefix tokens."""

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
    prefix_tokens: int = 0


@dataclass(frozen=True)
class TowerWeights:
    """Embedding and blocks of a tower."""

    embed: EmbedWeights
    blocks: tuple[BlockWeights, ...]


@dataclass(frozen=True)
class ProjectorWeights:
    """The two layers between tower and language model, the activation between them, and the grid
    that is pooled after them."""

    linear_1: Affine
    linear_2: Affine
    grid: Grid
    activation: str = "gelu"
