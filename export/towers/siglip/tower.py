"""SigLIP's vision tower as a part: its settings, tensors, modules and reference.

Says which Hugging Face tensor fills which parameter; the same names are the keys under which
tensors are stored once in the bundle's weights file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stc.export.layers import Shapes, fill, linear_shapes
from stc.export.towers.part import VisionWeights
from stc.export.towers.siglip.modules import Embed, Keys, Update
from stc.export.towers.siglip.reference import SiglipReference
from stc.manifest import VisionSpec
from stc.method.graphs import EMBED, kind_of

BLOCK = "encoder.layers.{block}"
MODULES = {EMBED: Embed, "keys": Keys, "update": Update}
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
        return EMBED_TENSORS if graph == EMBED else _layers(LAYERS[kind], block)

    def reference(self, weights: VisionWeights) -> SiglipReference:
        """transformers' own tower."""
        return SiglipReference(weights)


SIGLIP = Siglip()


def _layers(layers: Mapping[str, str], block: int) -> dict[str, str]:
    prefix = BLOCK.format(block=block)
    return {
        f"{ours}.{kind}": f"{prefix}.{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }
