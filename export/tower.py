"""A checkpoint's tower as the modules of `stc.export.modules`, one block at a time.

Says which Hugging Face tensor fills which parameter; the same names are the keys under which
tensors are stored once in the bundle's weights file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from stc.export.checkpoint import VisionWeights
from stc.export.modules import Embed, Keys, Project, Update

M = TypeVar("M", bound=nn.Module)

BLOCK = "encoder.layers.{block}"
KEYS_LAYERS = {"norm1": "layer_norm1", "key": "self_attn.k_proj"}
UPDATE_LAYERS = {
    "norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
EMBED_TENSORS = {
    "weight": "embeddings.patch_embedding.weight",
    "bias": "embeddings.patch_embedding.bias",
    "position": "embeddings.position_embedding.weight",
}


@dataclass(frozen=True)
class Tower:
    """Makes the filled modules of a checkpoint; holds no weights itself."""

    weights: VisionWeights
    dtype: torch.dtype = torch.float32

    def embed(self) -> Embed:
        """The patch and position embedding."""
        module = Embed(self.weights.spec, self.dtype)
        return fill(module, EMBED_TENSORS, self.weights.vision)

    def keys(self, block: int) -> Keys:
        """Block `block`'s keys."""
        module = Keys(self.weights.spec, self.dtype)
        return fill(module, keys_tensors(block), self.weights.vision)

    def update(self, block: int) -> Update:
        """Block `block`'s update."""
        module = Update(self.weights.spec, self.dtype)
        return fill(module, update_tensors(block), self.weights.vision)

    def project(self) -> Project:
        """Projector and pooling."""
        module = Project(self.weights.spec, self.dtype)
        names = {name: name for name, _ in module.named_parameters() if name != "pooling"}
        return fill(module, names, self.weights.projector)


def keys_tensors(block: int) -> dict[str, str]:
    """Hugging Face name of every parameter of block `block`'s keys."""
    return _layers(KEYS_LAYERS, block)


def update_tensors(block: int) -> dict[str, str]:
    """Hugging Face name of every parameter of block `block`'s update."""
    return _layers(UPDATE_LAYERS, block)


def _layers(layers: Mapping[str, str], block: int) -> dict[str, str]:
    prefix = BLOCK.format(block=block)
    return {
        f"{ours}.{kind}": f"{prefix}.{theirs}.{kind}"
        for ours, theirs in layers.items()
        for kind in ("weight", "bias")
    }


def fill(module: M, names: Mapping[str, str], load: Callable[[str], Tensor]) -> M:
    """`module` with every parameter of `names` loaded; linear weights are transposed."""
    for name, parameter in module.named_parameters():
        if name not in names:
            continue
        tensor = load(names[name])
        linear = tensor.ndim == 2 and name.endswith(".weight")
        parameter.data.copy_(tensor.T if linear else tensor)
    return module.eval()
