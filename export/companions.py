"""The small files of a checkpoint: settings, tokenizer, chat template. Each is read once.

What is read here is what the export takes its settings from and what it copies into the bundle: a
file that changes meanwhile, or a link to something else, cannot make the two differ.

transformers builds lists as long as a number of config.json says, and divides by others: each is
checked first (`check_config`).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from reprlib import repr as short
from typing import Any

from stc.errors import CheckpointError
from stc.prompts.files import parse_object, parse_text

FETCH = "download the checkpoint again, or pass the directory that holds all of it"
MAX_BYTES = 1 << 28
"""Larger than any tokenizer, and small enough to hold."""

CONFIG = "config.json"
GENERATION = "generation_config.json"
PROCESSOR = "processor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
PREPROCESSOR = "preprocessor_config.json"

NAMES = (
    CONFIG,
    PREPROCESSOR,
    VIDEO_PREPROCESSOR,
    PROCESSOR,
    GENERATION,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*.json",
    "chat_template*.json",
    "chat_template*.jinja",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
)

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


@dataclass(frozen=True)
class Described:
    """A JSON object, and what errors about it name."""

    subject: object
    fields: Mapping[str, Any]


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of the regular file at `path`, or behind the link there; at most `most`.

    Raises CheckpointError when it is missing, no such file, larger, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(path, "no regular file", "a file with content", FETCH)
            content = file.read(most + 1)
    except FileNotFoundError as error:
        got = "a link to a file that is missing" if path.is_symlink() else "no such file"
        raise CheckpointError(path, got, fix=FETCH) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", fix=FETCH) from error
    if len(content) > most:
        raise CheckpointError(path, "too large", f"at most {most >> 20} MiB", FETCH)
    return content


def _open_at_once(path: str, flags: int) -> int:
    # A pipe that nobody writes to would let its reader wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True)
class Companions:
    """The files of `directory` that go with weights, by name; every one is what its name says:
    a JSON object, or text in UTF-8."""

    directory: Path
    contents: Mapping[str, bytes]

    def __contains__(self, name: str) -> bool:
        return name in self.contents

    def described(self, name: str) -> Described:
        """The JSON object in file `name`.

        Raises CheckpointError when there is none.
        """
        if name not in self.contents:
            raise CheckpointError(self.directory / name, "no such file", fix=FETCH)
        path = self.directory / name
        return Described(path, parse_object(path, self.contents[name], CheckpointError))


def read_companions(directory: Path) -> Companions:
    """The companions that lie in `directory`, read now.

    Raises CheckpointError about one that is no regular file, a link out of the checkpoint to
    another file, larger than any tokenizer, or not what its name says.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise CheckpointError(directory, f"cannot be read ({error.strerror})") from error
    contents: dict[str, bytes] = {}
    for name in names:
        if any(fnmatch(name, glob) for glob in NAMES):
            path = directory / name
            content = read_bytes(path)
            _check_link(path)
            parse = parse_object if path.suffix == ".json" else parse_text
            parse(path, content, CheckpointError)
            contents[name] = content
    return Companions(directory, contents)


def _check_link(path: Path) -> None:
    """What a link leads to is copied into the bundle: it must be the file that its name promises.

    A link within the checkpoint, to a file of the same name, or to one in a store of the hub, where
    files are named by their content, is.
    """
    if not path.is_symlink():
        return
    target = path.resolve()
    inside = target.is_relative_to(path.parent.resolve())
    in_store = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not (inside or in_store or target.name == path.name):
        raise CheckpointError(
            path,
            f"a link to {target}, which would be copied into the bundle",
            f"a file, or a link to another {path.name}",
            "put a copy in its place if that is the right file",
        )


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
        most = WHOLE.get(name, 0) if prefix else 0
        if most and not (type(value) is int and 1 <= value <= most):
            raise _refused(subject, full, value, f"one whole number from 1 to {most}")
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
