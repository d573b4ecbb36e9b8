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
    linear_shapes,
    placed,
)
from stc.export.towers.part import VisionWeights
from stc.export.towers.siglip.reference import SiglipReference
from stc.manifest import VisionSpec
from stc.method.graphs import EMBED, kind_of

KEY_LAYER = {"key": "self_attn.k_proj"}
ATTENTION_LAYERS = {
    "norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
}
LAYERS = {
    "keys": {"norm1": "layer_norm1", **KEY_LAYER},
    "reference": {**ATTENTION_LAYERS, **KEY_LAYER},
    "update": ATTENTION_LAYERS,
    "mlp": {"norm2": "layer_norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
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
    """hidden [T, C] -> key [T, C]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.key = Affine(spec.width, spec.width, dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        key: Tensor = self.key(self.norm1(hidden))
        return key


class Attention(nn.Module):
    """What graphs with attention have in common: all of it but keys."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = spec.heads
        self.scale = spec.head_width**-0.5
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.query = Affine(spec.width, spec.width, dtype)
        self.value = Affine(spec.width, spec.width, dtype)
        self.out = Affine(spec.width, spec.width, dtype)

    def added(self, normed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What attention to key and value [T, C] adds to the rows that `normed` is of, [M, C]."""
        query = self.query(normed) * self.scale
        attention: Tensor = self.out(attended(query, key, value, self.heads))
        return attention


class Reference(Attention):
    """Attention of all tokens: hidden [T, C] -> key, value, attention, each [T, C]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__(spec, dtype)
        self.key = Affine(spec.width, spec.width, dtype)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm1(hidden)
        key, value = self.key(normed), self.value(normed)
        return key, value, self.added(normed, key, value)


class Update(Attention):
    """Attention of the M tokens of `indices`; the values of the others are the reference's.

    hidden [T, C], key [T, C], ref_value [T, C], indices int64 [M], places int64 [T]
    -> rows [M, C], attention [M, C].
    """

    def forward(
        self, hidden: Tensor, key: Tensor, ref_value: Tensor, indices: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = hidden.index_select(0, indices)
        normed = self.norm1(rows)
        value = placed(ref_value, self.value(normed), places)
        return rows, self.added(normed, key, value)


class Mlp(nn.Module):
    """rows [M, C], attention [M, C] -> residual [M, C], what attention and MLP add to the rows."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.activation]
        self.norm2 = Norm(spec.width, spec.layer_norm_eps)
        self.fc1 = Affine(spec.width, spec.mlp_width, dtype)
        self.fc2 = Affine(spec.mlp_width, spec.width, dtype)

    def forward(self, rows: Tensor, attention: Tensor) -> Tensor:
        mlp: Tensor = self.fc2(self.activation(self.fc1(self.norm2(rows + attention))))
        return attention + mlp


MODULES = {EMBED: Embed, "keys": Keys, "reference": Reference, "update": Update, "mlp": Mlp}


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
