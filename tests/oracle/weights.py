"""Tensors by their Hugging Face names as the numpy oracle's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.manifest import Grid
from tests.oracle.layers import (
    Affine,
    BlockWeights,
    EmbedWeights,
    Norm,
    ProjectorWeights,
    TowerWeights,
)

Array = NDArray[Any]


def tower_weights(
    tensors: Mapping[str, Array],
    *,
    heads: int,
    blocks: int,
    activation: str = "gelu_pytorch_tanh",
    eps: float = 1e-6,
    prefix: str = "",
    dtype: DTypeLike = np.float32,
) -> TowerWeights:
    """The first `blocks` blocks of a SiglipVisionModel; `prefix` stands before every name."""
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

    position = tower["embeddings.position_embedding.weight"]
    return TowerWeights(
        EmbedWeights(
            tower["embeddings.patch_embedding.weight"],
            tower["embeddings.patch_embedding.bias"],
            position,
            prefix=position[:0],
        ),
        tuple(map(block, range(blocks))),
    )


def projector_weights(
    tensors: Mapping[str, Array],
    grid: Grid,
    *,
    activation: str = "gelu",
    dtype: DTypeLike = np.float32,
) -> ProjectorWeights:
    """A LLaVA projector's weights; biases are optional."""
    layers = _Tensors(tensors, "", dtype)
    return ProjectorWeights(layers.affine("linear_1"), layers.affine("linear_2"), grid, activation)


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
