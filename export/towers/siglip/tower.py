"""A checkpoint's tower as the modules of `stc.export.towers.siglip.modules`, one block at a time.

Says which Hugging Face tensor fills which parameter; the same names are the keys under which
tensors are stored once in the bundle's weights file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from stc.export.checkpoint.checkpoint import VisionWeights
from stc.export.towers.siglip.modules import Embed, Keys, Project, Select, Update
from stc.export.towers.siglip.prune_module import Prune
from stc.method.graphs import EMBED, PROJECT, PRUNERS, SELECT
from stc.settings import SCORINGS

M = TypeVar("M", bound=nn.Module)

BLOCK = "encoder.layers.{block}"
MODULES = {"keys": Keys, "update": Update}
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


@dataclass(frozen=True)
class Tower:
    """Makes the filled modules of a checkpoint; holds no weights itself."""

    weights: VisionWeights
    dtype: torch.dtype = torch.float32

    def module(self, graph: str, count: int = 0) -> nn.Module:
        """The module of `graph`, filled; `count` is the M of `select` and the k of a pruner."""
        spec, dtype = self.weights.spec, self.dtype
        kind, block = kind_of(graph)
        if graph in PRUNERS:
            return Prune(SCORINGS[PRUNERS.index(graph)], count)
        if graph == SELECT:
            return Select(count)
        if graph == PROJECT:
            project = Project(spec, dtype)
            names = {name: name for name, _ in project.named_parameters() if name != "pooling"}
            return fill(project, names, self.weights.projector)
        if graph == EMBED:
            return fill(Embed(spec, dtype), EMBED_TENSORS, self.weights.vision)
        module = MODULES[kind](spec, dtype)
        return fill(module, _layers(LAYERS[kind], block), self.weights.vision)


def stored_as(graph: str, module: nn.Module) -> dict[str, str]:
    """The key under which each parameter of a graph's module stands in the weights file."""
    kind, block = kind_of(graph)
    if kind in LAYERS:
        return _layers(LAYERS[kind], block)
    if graph == EMBED:
        return EMBED_TENSORS
    return {name: f"projector.{name}" for name, _ in module.named_parameters()}


def kind_of(graph: str) -> tuple[str, int]:
    """What structure `graph` has, which all blocks share, and its block, 0 without one."""
    kind, _, block = graph.rpartition("_")
    return (kind, int(block)) if block.isdecimal() else (graph, 0)


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
