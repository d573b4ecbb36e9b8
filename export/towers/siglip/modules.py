"""SigLIP's graphs as torch modules: one per contract of `stc.method.graphs`, no batch axis.

Knows nothing of checkpoints, ONNX or files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.export.layers import (
    ACTIVATIONS,
    Affine,
    Norm,
    empty,
    likeness,
    replace_rows,
    softmax,
    split_heads,
)
from stc.manifest import VisionSpec


class Embed(nn.Module):
    """pixel_values [3, Hpx, Wpx] -> hidden [T, C]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = spec.patch_size
        self.width = spec.width
        self.weight = empty(spec.width, 3, spec.patch_size, spec.patch_size, dtype=dtype)
        self.bias = empty(spec.width, dtype=dtype)
        self.position = empty(spec.tokens, spec.width, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = F.conv2d(pixel_values.unsqueeze(0), self.weight, self.bias, stride=self.patch)
        return patches.reshape(self.width, -1).transpose(0, 1) + self.position


class Keys(nn.Module):
    """hidden [T, C], ref_key [H, T, d] -> key [H, T, d], score float32 [T]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_width = spec.heads, spec.head_width
        self.prefix_tokens = spec.grid.prefix_tokens
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.key = Affine(spec.width, spec.width, dtype)

    def forward(self, hidden: Tensor, ref_key: Tensor) -> tuple[Tensor, Tensor]:
        key = split_heads(self.key(self.norm1(hidden)), self.heads, self.head_width)
        return key, likeness(key, ref_key, self.prefix_tokens)


class Update(nn.Module):
    """One block on the M tokens of `indices`; the others are the reference's.

    hidden [T, C], key [H, T, d], ref_value [H, T, d], ref_residual [T, C], indices int64 [M]
    -> hidden_out [T, C], value [H, T, d], residual [T, C].
    """

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_width = spec.heads, spec.head_width
        self.width = spec.width
        self.scale = spec.head_width**-0.5
        self.activation = ACTIVATIONS[spec.activation]
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.query = Affine(spec.width, spec.width, dtype)
        self.value = Affine(spec.width, spec.width, dtype)
        self.out = Affine(spec.width, spec.width, dtype)
        self.norm2 = Norm(spec.width, spec.layer_norm_eps)
        self.fc1 = Affine(spec.width, spec.mlp_width, dtype)
        self.fc2 = Affine(spec.mlp_width, spec.width, dtype)

    def forward(
        self, hidden: Tensor, key: Tensor, ref_value: Tensor, ref_residual: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = hidden.index_select(0, indices)
        normed = self.norm1(rows)
        query = split_heads(self.query(normed) * self.scale, self.heads, self.head_width)
        fresh = split_heads(self.value(normed), self.heads, self.head_width)
        value = replace_rows(ref_value, indices, fresh)
        attended = (softmax(query @ key.transpose(1, 2)) @ value).transpose(0, 1)
        attention = self.out(attended.reshape(-1, self.width))
        mlp = self.fc2(self.activation(self.fc1(self.norm2(rows + attention))))
        residual = ref_residual.index_copy(0, indices, attention + mlp)
        return hidden + residual, value, residual
