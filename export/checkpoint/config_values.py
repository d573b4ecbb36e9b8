"""What config.json may say before transformers computes with it.

transformers builds lists as long as a number says, and divides by others: each is checked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from stc.errors import CheckpointError
from stc.export.checkpoint.json_object import FETCH, Described

OTHER_MODEL = "use a checkpoint of the llava-hf/llava-onevision-qwen2-*-ov-hf family"
NOT_QUANTISED = "use the checkpoint that is not quantised"

PARTS = ("text_config", "vision_config")
WHOLE = {
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 13,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 21,
    "image_size": 1 << 13,
    "patch_size": 1 << 13,
    "num_channels": 1 << 13,
}
"""The largest of each whole number; far beyond any model's, and small enough to compute with."""
REAL = ("rms_norm_eps", "layer_norm_eps", "rope_theta")
NULLABLE = ("num_key_value_heads", "head_dim", "rope_theta")
ROTARY = ("rope_parameters", "rope_scaling")
"""The key of today and that of old."""
FLAGS = (
    "tie_word_embeddings",
    "multimodal_projector_bias",
    "use_sliding_window",
    "vision_use_head",
    "tie_last_hidden_states",
)
DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double", "auto")
QUANTISED = ("quantization_config", "compression_config")
"""The key of today and that of old."""
NOT_READ = ("num_labels", "id2label", "label2id")
"""Of classifiers; transformers makes a table of as many labels as the number says."""


def check_config(config: Described) -> dict[str, Any]:
    """The fields of config.json that an export reads, safe to compute with.

    Raises CheckpointError when a number is none or outside any model's range, a part is no object,
    or the weights are quantised.
    """
    fields = _without_labels(config.fields)
    _check_part(config.subject, "", fields)
    for part in PARTS:
        values = fields.get(part)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise _refused(config.subject, part, values, "a JSON object")
        fields[part] = _without_labels(values)
        _check_part(config.subject, f"{part}.", values)
    weights = fields.get("transformers_weights")
    if weights is not None:  # transformers reads that file instead
        raise _refused(config.subject, "transformers_weights", weights, "model.safetensors")
    layer = fields.get("vision_feature_layer")
    if isinstance(layer, bool) or not isinstance(layer, int | list | None):
        raise _refused(config.subject, "vision_feature_layer", layer, "a whole number")
    return fields


def _without_labels(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in NOT_READ}


def _check_part(subject: object, prefix: str, fields: Mapping[str, Any]) -> None:
    for name in QUANTISED:
        if fields.get(name) is not None:
            got = f"{prefix}{name}: its weights are quantised"
            raise CheckpointError(subject, got, "float weights", NOT_QUANTISED)
    for name, value in fields.items():
        full = prefix + name
        if value is None and (name in NULLABLE or name in FLAGS):
            continue
        if prefix and name in WHOLE and not _is_whole(value, WHOLE[name]):
            raise _refused(subject, full, value, f"one whole number from 1 to {WHOLE[name]}")
        if prefix and name in REAL and not _is_positive(value):
            raise _refused(subject, full, value, "a positive number")
        if name in FLAGS and not isinstance(value, bool):
            raise _refused(subject, full, value, "true or false")
        if name in ("dtype", "torch_dtype") and not _is_float_dtype(value):
            raise _refused(subject, full, value, "float16, bfloat16 or float32", OTHER_MODEL)
    for name in ROTARY:
        rotary = fields.get(name)
        if rotary is not None and not isinstance(rotary, dict):
            raise _refused(subject, prefix + name, rotary, "a JSON object")
        base = (rotary or {}).get("rope_theta", 1.0)
        if not _is_positive(base):
            raise _refused(subject, f"{prefix}{name}.rope_theta", base, "a positive number")
    if fields.get("per_layer_config") is not None:
        got = f"{prefix}per_layer_config is given"
        raise CheckpointError(subject, got, "layers that are alike", OTHER_MODEL)


def _is_whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_positive(value: Any) -> bool:
    # A whole number beyond any float would overflow in math.isfinite.
    return (type(value) is int and 0 < value < 1 << 53) or (
        type(value) is float and value > 0 and math.isfinite(value)
    )


def _is_float_dtype(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.removeprefix("torch.") in DTYPES)


def _refused(
    subject: object, name: str, value: Any, expected: str, fix: str = FETCH
) -> CheckpointError:
    return CheckpointError(subject, f"{name} is {short(value)}", expected, fix)
