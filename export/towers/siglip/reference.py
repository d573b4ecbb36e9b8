"""SigLIP on transformers' own modules: what its graphs are compared with.

Written against transformers' layers, not against `tower` beside it, so that parity with it says
something about both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc.export.layers import join_heads, load_parameters, split_heads
from stc.export.towers.part import VisionWeights


class SiglipReference:
    """`SiglipVisionModel` without the norm after its last block; a TowerReference."""

    def __init__(self, weights: VisionWeights) -> None:
        spec = weights.spec
        self._heads = spec.heads, spec.head_width
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
        self.layers: Sequence[Any] = list(model.encoder.layers)

    def embed(self, pixel_values: Tensor) -> Any:
        return self._embeddings(pixel_values.unsqueeze(0))[0]

    def dense(self, layer: Any, hidden: Tensor) -> Any:
        return layer(hidden.unsqueeze(0), None)[0]

    def normed(self, layer: Any, hidden: Tensor) -> Any:
        return layer.layer_norm1(hidden)

    def query(self, layer: Any, normed: Tensor) -> Tensor:
        return split_heads(layer.self_attn.q_proj(normed), *self._heads)

    def key(self, layer: Any, normed: Tensor) -> Tensor:
        return split_heads(layer.self_attn.k_proj(normed), *self._heads)

    def value(self, layer: Any, normed: Tensor) -> Tensor:
        return split_heads(layer.self_attn.v_proj(normed), *self._heads)

    def joined(self, layer: Any, attended: Tensor) -> Any:
        return layer.self_attn.out_proj(join_heads(attended))

    def mlp(self, layer: Any, hidden: Tensor) -> Any:
        return layer.mlp(layer.layer_norm2(hidden))
