"""The vision geometry a checkpoint's JSON files describe.

Reads what transformers 4.x and 5.x write; values a file leaves out are transformers' own
defaults. Knows nothing of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from transformers import LlavaOnevisionConfig

from stc.errors import CheckpointError
from stc.export.checkpoint_file import FETCH, read_object
from stc.export.modules import ACTIVATIONS
from stc.manifest import VisionSpec

CONFIG = "config.json"
PROCESSOR = "processor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
PREPROCESSOR = "preprocessor_config.json"

MODEL_TYPE = "llava_onevision"
TOWER_TYPE = "siglip_vision_model"
BICUBIC = 3
"""Pillow's number of it."""
OTHER_MODEL = "use a checkpoint of the llava-hf/llava-onevision-qwen2-*-ov-hf family"


@dataclass(frozen=True)
class Described:
    """A JSON object, and what errors about it name."""

    subject: object
    fields: Mapping[str, Any]


def read_spec(directory: Path) -> VisionSpec:
    """The vision geometry and video preprocessing of the checkpoint in `directory`.

    Raises CheckpointError when its files are missing, damaged, or describe a model this export
    cannot represent.
    """
    config = directory / CONFIG
    return vision_spec(Described(config, read_object(config)), _video_preprocessing(directory))


def vision_spec(config: Described, preprocessing: Described) -> VisionSpec:
    """The spec of the object in config.json and of the one that says how frames are prepared.

    Raises CheckpointError about either.
    """
    geometry = _geometry(config)
    prepared = _prepared(preprocessing, geometry["image_size"])
    try:
        return VisionSpec(**geometry, **prepared)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        blamed = preprocessing if field.split(".")[0] in prepared else config
        got = f"{field} is {first['input']!r}: {first['msg']}" if field else first["msg"]
        raise CheckpointError(blamed.subject, got, mend=FETCH) from error


def parse_config(config: Described) -> LlavaOnevisionConfig:
    """transformers' configuration object of the object in config.json.

    Raises CheckpointError when it describes another model, or is none.
    """
    subject, fields = config.subject, config.fields
    if fields.get("model_type") != MODEL_TYPE:
        got = f"model_type is {fields.get('model_type')!r}"
        raise CheckpointError(subject, got, repr(MODEL_TYPE), OTHER_MODEL)
    if "quantization_config" in fields:
        raise CheckpointError(subject, "quantised weights", "float weights", OTHER_MODEL)
    try:
        return LlavaOnevisionConfig.from_dict(dict(fields))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        # transformers names every model it knows when it does not know one.
        got = f"not a valid configuration ({shorten(str(error), 200)})"
        raise CheckpointError(subject, got, mend=FETCH) from error


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
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            got = f"{name} is {getattr(vision, name)}"
            raise CheckpointError(subject, got, "one whole number", OTHER_MODEL)
    for activation in (vision.hidden_act, parsed.projector_hidden_act):
        if activation not in ACTIVATIONS:
            got = f"activation {activation!r}"
            raise CheckpointError(subject, got, " or ".join(ACTIVATIONS), OTHER_MODEL)
    return {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.hidden_size,
        "heads": vision.num_attention_heads,
        "mlp_width": vision.intermediate_size,
        "blocks": _blocks(subject, parsed.vision_feature_layer, vision.num_hidden_layers),
        "activation": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
        "language_width": parsed.text_config.hidden_size,
        "projector_activation": parsed.projector_hidden_act,
        "projector_bias": parsed.multimodal_projector_bias,
    }


def _prepared(preprocessing: Described, side: int) -> dict[str, Any]:
    """The fields of VisionSpec that a preprocessor gives.

    The runtime resizes every frame to the square input bicubically; what asks for anything else
    is refused.
    """
    subject, fields = preprocessing.subject, preprocessing.fields
    size = fields.get("size")
    if isinstance(size, dict):
        size = {name: value for name, value in size.items() if value is not None}
    if size not in ({"height": side, "width": side}, None):
        square = f"height and width {side}, as {CONFIG} has it"
        raise CheckpointError(subject, f"resizes to {size}", square, FETCH)
    for name, expected in (("resample", BICUBIC), ("do_resize", True), ("do_center_crop", False)):
        if fields.get(name) not in (expected, None):
            got = f"{name} is {fields[name]}"
            raise CheckpointError(subject, got, str(expected), OTHER_MODEL)
    normalises = fields.get("do_normalize") is not False
    rescales = fields.get("do_rescale") is not False
    for name in ("image_mean", "image_std"):
        if normalises and name not in fields:
            raise CheckpointError(subject, f"no {name}", "three numbers", FETCH)
    return {
        "image_mean": fields["image_mean"] if normalises else (0.0, 0.0, 0.0),
        "image_std": fields["image_std"] if normalises else (1.0, 1.0, 1.0),
        "rescale_factor": fields.get("rescale_factor", 1 / 255) if rescales else 1.0,
    }


def _require(subject: object, name: str, config: Any, expected: object) -> None:
    got = getattr(config, name)
    if got != expected:
        raise CheckpointError(subject, f"{name} is {got!r}", repr(expected), OTHER_MODEL)


def _blocks(subject: object, layer: object, layers: int) -> int:
    """The blocks to run for hidden state `layer`: state 0 is the embedding, state i block i's
    output, the last one before the norm that follows (Siglip ties none of them to it)."""
    if not isinstance(layer, int):
        got = f"vision_feature_layer is {layer}"
        raise CheckpointError(subject, got, "one layer, not several", OTHER_MODEL)
    blocks = layer if layer >= 0 else layers + 1 + layer
    if not 1 <= blocks <= layers:
        got = f"vision_feature_layer is {layer}"
        expected = f"the output of one of the {layers} blocks"
        raise CheckpointError(subject, got, expected, OTHER_MODEL)
    return blocks


def _video_preprocessing(directory: Path) -> Described:
    """The object transformers would take for video: the same files in the same order."""
    nested = directory / PROCESSOR
    if nested.exists():
        video = read_object(nested).get("video_processor")
        if isinstance(video, dict):
            return Described(nested, video)
    for name in (VIDEO_PREPROCESSOR, PREPROCESSOR):
        if (directory / name).exists():
            return Described(directory / name, read_object(directory / name))
    raise CheckpointError(
        directory, "no preprocessing", f"{PROCESSOR}, {VIDEO_PREPROCESSOR} or {PREPROCESSOR}", FETCH
    )
