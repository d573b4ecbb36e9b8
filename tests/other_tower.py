"""A tower unlike SigLIP: one matrix for queries, keys and values, a class token before the patches,
5 x 7 patches on a picture that is no square. Its reference is torch's own TransformerEncoderLayer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.export.layers import (
    Affine,
    Norm,
    Shapes,
    empty,
    fill,
    join_heads,
    linear_shapes,
    load_parameters,
    split_heads,
)
from stc.export.made_up.synthetic import seeded
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.part import TowerPart, VisionWeights
from stc.manifest import Grid, VisionSpec
from stc.method.graphs import EMBED, kind_of
from tests.oracle.layers import (
    Affine as OracleAffine,
)
from tests.oracle.layers import (
    BlockWeights,
    EmbedWeights,
    ProjectorWeights,
    TowerWeights,
)
from tests.oracle.layers import (
    Norm as OracleNorm,
)

SPEC = VisionSpec(
    image_height=43,
    image_width=56,
    patch_size=8,
    grid=Grid(rows=5, columns=7, prefix_tokens=1, pooled_rows=3, pooled_columns=4),
    width=24,
    heads=3,
    mlp_width=40,
    blocks=3,
    activation="gelu",
    layer_norm_eps=1e-5,
    language_width=20,
    projector_activation="gelu",
    image_mean=(0.4, 0.5, 0.6),
    image_std=(0.2, 0.3, 0.4),
)
"""36 tokens, 12 after pooling; the last 3 rows of pixels fill no patch."""

BLOCK_LAYERS = {
    "norm1": "norm1.",
    "qkv": "self_attn.in_proj_",
    "out": "self_attn.out_proj.",
    "norm2": "norm2.",
    "fc1": "linear1.",
    "fc2": "linear2.",
}
LAYERS = {
    kind: {name: BLOCK_LAYERS[name] for name in names}
    for kind, names in {
        "keys": ("norm1", "qkv"),
        "reference": ("norm1", "qkv", "out"),
        "update": ("norm1", "qkv", "out"),
        "mlp": ("norm2", "fc1", "fc2"),
    }.items()
}
EMBED_TENSORS = {name: f"embed.{name}" for name in ("weight", "bias", "class_token", "position")}


class Embed(nn.Module):
    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch, self.width = spec.patch_size, spec.width
        self.weight = empty(spec.width, 3, spec.patch_size, spec.patch_size, dtype=dtype)
        self.bias = empty(spec.width, dtype=dtype)
        self.class_token = empty(1, spec.width, dtype=dtype)
        self.position = empty(spec.tokens, spec.width, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = F.conv2d(pixel_values.unsqueeze(0), self.weight, self.bias, stride=self.patch)
        rows = patches.reshape(self.width, -1).transpose(0, 1)
        return torch.cat([self.class_token, rows]) + self.position


class Block(nn.Module):
    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_width, self.width = spec.heads, spec.head_width, spec.width
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.qkv = Affine(spec.width, 3 * spec.width, dtype)

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = self.qkv(self.norm1(rows)).split(self.width, dim=1)
        return parts


class Keys(Block):
    def forward(self, hidden: Tensor) -> Tensor:
        _, key, _ = self.split(hidden)
        return key


class Attention(Block):
    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__(spec, dtype)
        self.out = Affine(spec.width, spec.width, dtype)

    def added(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (
            split_heads(one, self.heads, self.head_width) for one in (query, key, value)
        )
        shares = torch.softmax(query @ key.transpose(1, 2) * self.head_width**-0.5, dim=-1)
        attention: Tensor = self.out(join_heads(shares @ value))
        return attention


class ReferenceBlock(Attention):
    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.split(hidden)
        return key, value, self.added(query, key, value)


class Update(Attention):
    def forward(
        self, hidden: Tensor, key: Tensor, ref_value: Tensor, indices: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = hidden.index_select(0, indices)
        query, _, fresh = self.split(rows)
        value = torch.cat([ref_value, fresh]).index_select(0, places)
        return rows, self.added(query, key, value)


class Mlp(nn.Module):
    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm2 = Norm(spec.width, spec.layer_norm_eps)
        self.fc1 = Affine(spec.width, spec.mlp_width, dtype)
        self.fc2 = Affine(spec.mlp_width, spec.width, dtype)

    def forward(self, rows: Tensor, attention: Tensor) -> Tensor:
        mlp: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(rows + attention))))
        return attention + mlp


MODULES: Mapping[str, Any] = {
    EMBED: Embed,
    "keys": Keys,
    "reference": ReferenceBlock,
    "update": Update,
    "mlp": Mlp,
}


class ClassTokenTower:
    """The tower as `stc.export.towers.part.TowerPart` has it."""

    def shapes(self, spec: VisionSpec) -> Shapes:
        width, patch = spec.width, spec.patch_size
        shapes: Shapes = {
            "embed.weight": (width, 3, patch, patch),
            "embed.bias": (width,),
            "embed.class_token": (1, width),
            "embed.position": (spec.tokens, width),
        }
        for block in range(spec.blocks):
            shapes |= {
                f"layers.{block}.{name}.{kind}": (width,)
                for name in ("norm1", "norm2")
                for kind in ("weight", "bias")
            }
            shapes[f"layers.{block}.self_attn.in_proj_weight"] = (3 * width, width)
            shapes[f"layers.{block}.self_attn.in_proj_bias"] = (3 * width,)
            shapes |= linear_shapes(f"layers.{block}.self_attn.out_proj", width, width)
            shapes |= linear_shapes(f"layers.{block}.linear1", width, spec.mlp_width)
            shapes |= linear_shapes(f"layers.{block}.linear2", spec.mlp_width, width)
        return shapes

    def module(self, weights: VisionWeights, graph: str, dtype: torch.dtype) -> nn.Module:
        kind, _ = kind_of(graph)
        module: nn.Module = MODULES[kind](weights.spec, dtype)
        return fill(module, self.stored_as(graph), weights.vision)

    def stored_as(self, graph: str) -> dict[str, str]:
        kind, block = kind_of(graph)
        if graph == EMBED:
            return EMBED_TENSORS
        return {
            f"{ours}.{part}": f"layers.{block}.{theirs}{part}"
            for ours, theirs in LAYERS[kind].items()
            for part in ("weight", "bias")
        }

    def reference(self, weights: VisionWeights) -> Reference:
        return Reference(weights)


class Reference:
    """The tower of torch's own layers; a TowerReference."""

    def __init__(self, weights: VisionWeights) -> None:
        spec = weights.spec
        self._embed = {name: weights.vision(key) for name, key in EMBED_TENSORS.items()}
        self._patch, self._heads = spec.patch_size, (spec.heads, spec.head_width)
        self.layers: Sequence[Any] = [self._layer(weights, block) for block in range(spec.blocks)]

    @staticmethod
    def _layer(weights: VisionWeights, block: int) -> nn.Module:
        spec = weights.spec
        layer = nn.TransformerEncoderLayer(
            spec.width,
            spec.heads,
            spec.mlp_width,
            activation="gelu",
            layer_norm_eps=spec.layer_norm_eps,
            batch_first=True,
            norm_first=True,
        )
        load_parameters(layer, lambda name: weights.vision(f"layers.{block}.{name}"))
        return layer

    def embed(self, pixel_values: Tensor) -> Tensor:
        columns = F.unfold(pixel_values[None], self._patch, stride=self._patch)[0].T
        patches = F.linear(columns, self._embed["weight"].flatten(1), self._embed["bias"])
        return torch.cat([self._embed["class_token"], patches]) + self._embed["position"]

    def dense(self, layer: Any, hidden: Tensor) -> Any:
        return layer(hidden[None])[0]

    def normed(self, layer: Any, hidden: Tensor) -> Any:
        return layer.norm1(hidden)

    def query(self, layer: Any, normed: Tensor) -> Tensor:
        return self._part(layer, normed, 0)

    def key(self, layer: Any, normed: Tensor) -> Tensor:
        return self._part(layer, normed, 1)

    def value(self, layer: Any, normed: Tensor) -> Tensor:
        return self._part(layer, normed, 2)

    def joined(self, layer: Any, attended: Tensor) -> Any:
        return layer.self_attn.out_proj(join_heads(attended))

    def mlp(self, layer: Any, hidden: Tensor) -> Any:
        return layer.linear2(F.gelu(layer.linear1(layer.norm2(hidden))))

    def _part(self, layer: Any, normed: Tensor, part: int) -> Tensor:
        matrix = layer.self_attn.in_proj_weight.chunk(3)[part]
        bias = layer.self_attn.in_proj_bias.chunk(3)[part]
        return split_heads(F.linear(normed, matrix, bias), *self._heads)


TOWER = ClassTokenTower()


@dataclass(frozen=True)
class OtherWeights:
    """Made-up weights of the tower; satisfies VisionWeights."""

    name: str = "class token"
    spec: VisionSpec = SPEC
    tower: TowerPart = TOWER

    def vision(self, name: str) -> Tensor:
        return seeded(0, name, self.tower.shapes(self.spec)[name])

    def projector(self, name: str) -> Tensor:
        return seeded(0, name, projector_shapes(self.spec)[name])

    def companions(self) -> dict[str, bytes]:
        return {}


def oracle_weights(weights: OtherWeights) -> tuple[TowerWeights, ProjectorWeights]:
    """The same as the numpy oracle reads them."""
    spec = weights.spec

    def array(name: str) -> Any:
        return weights.vision(name).numpy()

    def norm(name: str) -> OracleNorm:
        return OracleNorm(array(f"{name}.weight"), array(f"{name}.bias"), spec.layer_norm_eps)

    def affine(name: str) -> OracleAffine:
        return OracleAffine(array(f"{name}.weight"), array(f"{name}.bias"))

    def block(layer: str) -> BlockWeights:
        joined = (weights.vision(f"{layer}.self_attn.in_proj_{of}") for of in ("weight", "bias"))
        matrices, biases = (tensor.chunk(3) for tensor in joined)
        query, key, value = (
            OracleAffine(matrix.numpy(), bias.numpy())
            for matrix, bias in zip(matrices, biases, strict=True)
        )
        return BlockWeights(
            heads=spec.heads,
            activation=spec.activation,
            norm1=norm(f"{layer}.norm1"),
            query=query,
            key=key,
            value=value,
            out=affine(f"{layer}.self_attn.out_proj"),
            norm2=norm(f"{layer}.norm2"),
            fc1=affine(f"{layer}.linear1"),
            fc2=affine(f"{layer}.linear2"),
            prefix_tokens=spec.grid.prefix_tokens,
        )

    embed = EmbedWeights(
        patch=array("embed.weight"),
        bias=array("embed.bias"),
        position=array("embed.position"),
        prefix=array("embed.class_token"),
    )
    first, second = (
        OracleAffine(*(weights.projector(f"{name}.{of}").numpy() for of in ("weight", "bias")))
        for name in ("linear_1", "linear_2")
    )
    blocks = tuple(block(f"layers.{number}") for number in range(spec.blocks))
    return TowerWeights(embed, blocks), ProjectorWeights(first, second, spec.grid)
