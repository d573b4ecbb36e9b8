"""LLaVA-OneVision: a tower, a projector of two layers, bilinear pooling to half of each side.

Reads the vision geometry from a checkpoint's JSON files as transformers 4.x and 5.x write them;
values a file leaves out are transformers' own defaults.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from reprlib import repr as short
from textwrap import shorten
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaOnevisionConfig

from stc.errors import CheckpointError
from stc.export.choices import Add, Compare, Merge, Place, Prune, Select
from stc.export.companions import (
    CONFIG,
    FETCH,
    OTHER_MODEL,
    Companions,
    Described,
    check_config,
)
from stc.export.layers import ACTIVATIONS, Affine, Shapes, fill, linear_shapes
from stc.export.towers.part import VisionWeights
from stc.export.towers.siglip.frame_preparation import prepared, video_preprocessing
from stc.manifest import Grid, VisionSpec
from stc.method.graphs import ADD, COMPARE, MERGE, PLACE, PROJECT, PRUNERS, SELECT
from stc.settings import SCORINGS

MODEL_TYPE = "llava_onevision"
TOWER_TYPE = "siglip_vision_model"


@dataclass(frozen=True)
class VisionModel:
    """Makes the filled modules of all vision graphs; holds no weights itself."""

    weights: VisionWeights
    dtype: torch.dtype = torch.float32

    def module(self, graph: str, count: int = 0) -> nn.Module:
        """The module of `graph`, filled; `count` is the M of `select` and the k of a pruner."""
        if graph in PRUNERS:
            return Prune(SCORINGS[PRUNERS.index(graph)], count)
        if graph == COMPARE:
            return Compare(self.weights.spec.grid.prefix_tokens)
        if graph == SELECT:
            return Select(count)
        if graph == PLACE:
            return Place(self.weights.spec.tokens)
        if graph in (ADD, MERGE):
            return Add() if graph == ADD else Merge()
        if graph == PROJECT:
            names = {name: name for name in projector_shapes(self.weights.spec)}
            return fill(Project(self.weights.spec, self.dtype), names, self.weights.projector)
        return self.weights.tower.module(self.weights, graph, self.dtype)

    def stored_as(self, graph: str, module: nn.Module) -> dict[str, str]:
        """The key under which each parameter of a graph's module stands in the weights file."""
        if graph in (PROJECT, COMPARE, SELECT, PLACE, ADD, MERGE, *PRUNERS):
            return {name: f"projector.{name}" for name, _ in module.named_parameters()}
        return self.weights.tower.stored_as(graph)


class Project(nn.Module):
    """hidden [T, C] -> tokens [n, D]: projector, then bilinear pooling of the patches.

    The pooling's weights sum to 1 for every token, so it commutes with the projector's second
    matrix; it stands before it, where it has n tokens to multiply instead of T.
    """

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.projector_activation]
        self.linear_1 = Affine(spec.width, spec.language_width, dtype, bias=spec.projector_bias)
        self.linear_2 = Affine(
            spec.language_width, spec.language_width, dtype, bias=spec.projector_bias
        )
        self.pooling = nn.Parameter(pooling_matrix(spec.grid).to(dtype), requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens: Tensor = self.linear_2(self.pooling @ self.activation(self.linear_1(hidden)))
        return tokens


def pooling_matrix(grid: Grid) -> Tensor:
    """Bilinear resize (align_corners False) of the patches to the pooled grid: float32 [n, T].

    The columns of prefix tokens are 0, so that nothing of them is left.
    """
    identity = torch.eye(grid.patches).reshape(-1, 1, grid.rows, grid.columns)
    size = (grid.pooled_rows, grid.pooled_columns)
    pooled = F.interpolate(identity, size=size, mode="bilinear")
    matrix = pooled.reshape(grid.patches, -1).transpose(0, 1)
    return F.pad(matrix, (grid.prefix_tokens, 0)).contiguous()


def projector_shapes(spec: VisionSpec) -> Shapes:
    """Every tensor of the projector."""
    language, bias = spec.language_width, spec.projector_bias
    return linear_shapes("linear_1", spec.width, language, bias=bias) | linear_shapes(
        "linear_2", language, language, bias=bias
    )


def described_spec(companions: Companions) -> VisionSpec:
    """The vision geometry and video preprocessing of `companions`.

    Raises CheckpointError when they are missing, or describe a model that cannot be exported.
    """
    return vision_spec(companions.described(CONFIG), video_preprocessing(companions))


def vision_spec(config: Described, preprocessing: Described) -> VisionSpec:
    """The spec of the object in config.json and of the one that says how frames are prepared.

    Raises CheckpointError about either.
    """
    geometry = _geometry(config)
    frames = prepared(preprocessing, geometry["image_height"])
    try:
        return VisionSpec(**geometry, **frames)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        blamed = preprocessing if field.split(".")[0] in frames else config
        got = f"{field} is {short(first['input'])}: {first['msg']}" if field else first["msg"]
        raise CheckpointError(blamed.subject, got, fix=FETCH) from error


def parse_config(config: Described) -> LlavaOnevisionConfig:
    """transformers' configuration object of the object in config.json.

    Raises CheckpointError when it describes another model, or is none.
    """
    subject, fields = config.subject, config.fields
    if fields.get("model_type") != MODEL_TYPE:
        got = f"model_type is {short(fields.get('model_type'))}"
        raise CheckpointError(subject, got, repr(MODEL_TYPE), OTHER_MODEL)
    checked = check_config(config)
    try:
        # transformers fills in what is missing where it stands.
        return LlavaOnevisionConfig.from_dict(deepcopy(checked))
    except Exception as error:
        # Whatever transformers' own code meets in a value: it names every model it knows when it
        # does not know one.
        got = f"not a valid configuration ({shorten(str(error), 200)})"
        raise CheckpointError(subject, got, fix=FETCH) from error


def _geometry(config: Described) -> dict[str, Any]:
    """The fields of VisionSpec that config.json gives."""
    subject, parsed = config.subject, parse_config(config)
    vision = parsed.vision_config
    if vision.model_type != TOWER_TYPE:
        got = f"vision tower {vision.model_type!r}"
        raise CheckpointError(subject, got, repr(TOWER_TYPE), OTHER_MODEL)
    _require(subject, "vision_feature_select_strategy", parsed, "full")
    _require(subject, "num_channels", vision, 3)
    if getattr(vision, "tie_last_hidden_states", None):
        got = "tie_last_hidden_states is true"
        raise CheckpointError(subject, got, "features from before the last norm", OTHER_MODEL)
    for activation in (vision.hidden_act, parsed.projector_hidden_act):
        if activation not in ACTIVATIONS:
            got = f"activation {short(activation)}"
            raise CheckpointError(subject, got, " or ".join(ACTIVATIONS), OTHER_MODEL)
    if vision.patch_size > vision.image_size:
        got = f"image of {vision.image_size} px, patch of {vision.patch_size} px"
        raise CheckpointError(subject, got, "a patch within the image", FETCH)
    side = vision.image_size // vision.patch_size
    half = -(-side // 2)
    return {
        "image_height": vision.image_size,
        "image_width": vision.image_size,
        "patch_size": vision.patch_size,
        "grid": {"rows": side, "columns": side, "pooled_rows": half, "pooled_columns": half},
        "width": vision.hidden_size,
        "heads": vision.num_attention_heads,
        "mlp_width": vision.intermediate_size,
        "blocks": _blocks(subject, parsed.vision_feature_layer, vision.num_hidden_layers),
        "activation": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
        "language_width": getattr(parsed.text_config, "hidden_size", None),
        "projector_activation": parsed.projector_hidden_act,
        "projector_bias": parsed.multimodal_projector_bias,
    }


def _require(subject: object, name: str, config: Any, expected: object) -> None:
    got = getattr(config, name)
    if got != expected:
        raise CheckpointError(subject, f"{name} is {short(got)}", repr(expected), OTHER_MODEL)


def _blocks(subject: object, layer: Any, layers: int) -> int:
    """The blocks to run for hidden state `layer`: state 0 is the embedding, state i block i's
    output, the last one before the norm that follows (Siglip ties none of them to it)."""
    if isinstance(layer, list) and len(layer) == 1:
        (layer,) = layer
    if type(layer) is not int:
        got = f"vision_feature_layer is {short(layer)}"
        raise CheckpointError(subject, got, "one layer, not several", OTHER_MODEL)
    blocks = layer if layer >= 0 else layers + 1 + layer
    if not 1 <= blocks <= layers:
        got = f"vision_feature_layer is {short(layer)}"
        expected = f"the output of one of the {layers} blocks"
        raise CheckpointError(subject, got, expected, OTHER_MODEL)
    return blocks
