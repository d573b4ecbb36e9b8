"""SigLIP's vision tower as a part: its tensors on disk, its graphs as torch modules, its reference.

Modules have one class per contract of `stc.method.graphs` and no batch axis. The Hugging Face names
of what fills them are the keys under which tensors are stored once in the bundle's weights file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.export.layers import (
    ACTIVATIONS,
    Affine,
    Norm,
    Shapes,
    attended,
    empty,
    fill,
    likeness,
    linear_shapes,
    replace_rows,
    split_heads,
)
from stc.export.towers.part import VisionWeights
from stc.export.towers.siglip.reference import SiglipReference
from stc.manifest import VisionSpec
from stc.method.graphs import EMBED, kind_of

LAYERS = {
    "keys": {"norm1": "layer_norm1", "key": "self_attn.k_proj"},
    "update": {
        "norm1": "layer_norm1",
        "query": "self_attn.q_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
}
"""By a block's kinds of graph: its parameters' layers, and what Hugging Face calls them."""
EMBED_TENSORS = {
    "weight": "embeddings.patch_embedding.weight",
    "bias": "embeddings.patch_embedding.bias",
    "position": "embeddings.position_embedding.weight",
}


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
        attention = self.out(attended(query, key, value))
        mlp = self.fc2(self.activation(self.fc1(self.norm2(rows + attention))))
        residual = ref_residual.index_copy(0, indices, attention + mlp)
        return hidden + residual, value, residual


MODULES = {EMBED: Embed, "keys": Keys, "update": Update}


class Siglip:
    """SigLIP as `stc.export.towers.part.TowerPart` has it."""

    def shapes(self, spec: VisionSpec) -> Shapes:
        """Every tensor of the embedding and of the L blocks that run.

        The head and the norm behind the last block are not among them: LLaVA-OneVision takes its
        features before that norm.
        """
        width, patch = spec.width, spec.patch_size
        shapes: Shapes = {
            "embeddings.patch_embedding.weight": (width, 3, patch, patch),
            "embeddings.patch_embedding.bias": (width,),
            "embeddings.position_embedding.weight": (spec.tokens, width),
        }
        for block in range(spec.blocks):
            prefix = f"encoder.layers.{block}"
            for norm in ("layer_norm1", "layer_norm2"):
                shapes[f"{prefix}.{norm}.weight"] = (width,)
                shapes[f"{prefix}.{norm}.bias"] = (width,)
            for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= linear_shapes(f"{prefix}.self_attn.{linear}", width, width)
            shapes |= linear_shapes(f"{prefix}.mlp.fc1", width, spec.mlp_width)
            shapes |= linear_shapes(f"{prefix}.mlp.fc2", spec.mlp_width, width)
        return shapes

    def module(self, weights: VisionWeights, graph: str, dtype: torch.dtype) -> nn.Module:
        """The module of `graph`, filled."""
        kind, _ = kind_of(graph)
        module: nn.Module = MODULES[kind](weights.spec, dtype)
        return fill(module, self.stored_as(graph), weights.vision)

    def stored_as(self, graph: str) -> dict[str, str]:
        """The tensor of each parameter of a graph's module."""
        kind, block = kind_of(graph)
        if graph == EMBED:
            return EMBED_TENSORS
        return {
            f"{ours}.{part}": f"encoder.layers.{block}.{theirs}.{part}"
            for ours, theirs in LAYERS[kind].items()
            for part in ("weight", "bias")
        }

    def reference(self, weights: VisionWeights) -> SiglipReference:
        """transformers' own tower."""
        return SiglipReference(weights)


SIGLIP = Siglip()
