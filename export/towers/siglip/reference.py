"""SigLIP on transformers' own modules: what its graphs are compared with.

Written against transformers' layers, not against `modules` beside it, so that parity with it
says something about both. Attention is torch's fused one, as transformers runs it by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc.export.layers import load_parameters, split_heads
from stc.export.towers.part import VisionWeights


class SiglipReference:
    """`SiglipVisionModel` without the norm after its last block; a TowerReference."""

    def __init__(self, weights: VisionWeights) -> None:
        spec = weights.spec
        config = SiglipVisionConfig(
            hidden_size=spec.width,
            intermediate_size=spec.mlp_width,
            num_hidden_layers=spec.blocks,
            num_attention_heads=spec.heads,
            image_size=spec.image_height,
            patch_size=spec.patch_size,
            hidden_act=spec.activation,
            layer_norm_eps=spec.layer_norm_eps,
            vision_use_head=False,
        )
        with torch.device("meta"):
            model: Any = SiglipVisionModel(config)
        model.post_layernorm = nn.Identity()
        places = torch.arange(spec.tokens).expand((1, -1))
        model.embeddings.register_buffer("position_ids", places, False)
        load_parameters(model, weights.vision)
        self._embeddings = model.embeddings
        self.layers = [
            SiglipLayer(layer, spec.heads, spec.head_width) for layer in model.encoder.layers
        ]

    def embed(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [3, Hpx, Wpx] -> hidden [T, C]."""
        hidden: Tensor = self._embeddings(pixel_values.unsqueeze(0))[0]
        return hidden


@dataclass(frozen=True)
class SiglipLayer:
    """A layer of transformers'; a TowerLayer."""

    layer: Any
    heads: int
    head_width: int

    def dense(self, hidden: Tensor) -> Tensor:
        """The block's output."""
        output: Tensor = self.layer(hidden.unsqueeze(0), None)[0]
        return output

    def normed(self, hidden: Tensor) -> Tensor:
        """What keys, values and queries are computed from."""
        normed: Tensor = self.layer.layer_norm1(hidden)
        return normed

    def key(self, normed: Tensor) -> Tensor:
        """Keys."""
        return self._heads(self.layer.self_attn.k_proj(normed))

    def value(self, normed: Tensor) -> Tensor:
        """Values."""
        return self._heads(self.layer.self_attn.v_proj(normed))

    def residual(self, hidden: Tensor, normed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the block adds to the rows `hidden`."""
        query = self._heads(self.layer.self_attn.q_proj(normed))
        attended = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        attention = self.layer.self_attn.out_proj(attended.transpose(0, 1).reshape(hidden.shape))
        residual: Tensor = attention + self.layer.mlp(self.layer.layer_norm2(hidden + attention))
        return residual

    def _heads(self, x: Tensor) -> Tensor:
        return split_heads(x, self.heads, self.head_width)
