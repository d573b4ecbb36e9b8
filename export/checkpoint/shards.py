"""The safetensors files of a checkpoint: what they hold, and single tensors of them.

Opening reads headers only. Every tensor is accounted for: read, known to play no part, or refused.
One that is left over is the trace of something the export would silently do without: an adapter
that was not merged, scales of quantised weights, blocks the configuration does not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stc.errors import CheckpointError
from stc.export.companions import FETCH, NOT_QUANTISED, read_bytes
from stc.prompts.files import parse_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth")
DTYPES = ("F16", "BF16", "F32", "F64")

MERGE = (
    "merge the adapter first: PeftModel.from_pretrained(MODEL, ADAPTER_DIR).merge_and_unload()"
    ".save_pretrained(NEW_DIR)"
)
UNWRAP = (
    "save the model inside the wrapper, as accelerator.unwrap_model gives it, or rename the tensors"
)
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model*",
    "adapters.safetensors",
    "adapters.npz",
    "*lora*.safetensors",
    "*lora*.bin",
)
"""Beside a model, or in a folder of it; some of them transformers would load over its weights."""

SIGNS = (
    (
        re.compile(
            r"(^|\.)(base_layer|base_model|lora_\w+|ia3_\w+|modules_to_save|original_module"
            r"|prompt_encoder|prompt_embeddings|hada_w\w+|lokr_\w+|oft_\w+|boft_\w+|vera_lambda\w*"
            r"|ranknum|trainable_tokens\w*|token_adapter|adaption_\w+|randlora_\w+|c3a_\w+)(\.|$)"
        ),
        "of an adapter that is not merged",
        MERGE,
    ),
    (
        re.compile(
            r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
            r"|_fpw_module|_forward_module|_flat_param\w*)(\.|$)"
        ),
        "saved with a wrapper of training round the model",
        UNWRAP,
    ),
    (
        re.compile(
            r"\.(\w*weight_scales?\w*|(in|out)put_scale\w*|[kqv]_scale|q?scales|q?zeros|qweight"
            r"|\w*zero_points?|g_idx|\w*absmax|\w*quant_map|quant_state\w*(\.\w+)?|SCB|weight_format"
            r"|\w+_packed|weight_shape|weight_bits|codebooks|codes|W_q|q_perm|q_invperm|q_scale\w*"
            r"|q_group\w*|amax)$"
        ),
        "of quantised weights",
        NOT_QUANTISED,
    ),
)
"""A pattern of names, what a tensor of such a name is, and the fix."""

NEWLINE = re.compile(r"(model\.)?image_newline")
"""Between the rows of single images; a video's tokens have none."""
TOWER_UNUSED = re.compile(
    r"post_layernorm\.(weight|bias)|embeddings\.position_ids"
    r"|head\.(probe|attention\.(in_proj_weight|in_proj_bias|out_proj\.(weight|bias))"
    r"|layernorm\.(weight|bias)|mlp\.fc[12]\.(weight|bias))"
)
"""Behind the features LLaVA-OneVision takes, and a buffer of old."""
DECODER_UNUSED = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""A buffer of old: its values follow from the configuration."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and as what; `dtype` is safetensors' name of it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Shards:
    """Every tensor of a checkpoint by its name on disk; no tensor data is held."""

    directory: Path
    tensors: Mapping[str, StoredTensor]

    def find(self, name: str) -> StoredTensor:
        """Where the tensor `name` lies; its data is not read.

        Raises CheckpointError when there is none, or when it is not floating point.
        """
        stored = self.tensors.get(name)
        if stored is None:
            raise CheckpointError(self.directory, "a tensor is missing", name, FETCH)
        if stored.dtype not in DTYPES:
            subject, got = f"{stored.file}: {name}", f"stored as {stored.dtype}"
            raise CheckpointError(subject, got, " or ".join(DTYPES), NOT_QUANTISED)
        return stored

    def load(self, name: str) -> Tensor:
        """The tensor `name`, read now, as float32.

        Raises CheckpointError when there is none, when it is not floating point or not finite,
        or when its file has changed for the worse since it was opened.
        """
        return self._read(name, lambda file: file.get_tensor(name))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the matrix `name`, read now, as float32; raises as `load`."""
        return self._read(name, lambda file: file.get_slice(name)[start:stop])

    def _read(self, name: str, read: Callable[[Any], Tensor]) -> Tensor:
        stored = self.find(name)
        with _opened(stored.file) as file:
            tensor = read(file).to(torch.float32)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{stored.file}: {name}", "holds NaN or infinity", "finite weights", FETCH
            )
        return tensor


def open_shards(directory: Path) -> Shards:
    """What `model.safetensors`, or else every file its index names, holds.

    Each file's header is read and its length compared with it, so that a truncated download is
    found here; so is an index of other files than those that lie beside it.

    Raises CheckpointError when files are missing, truncated, not safetensors, or disagree.
    """
    # As transformers chooses: the single file goes before an index.
    if (directory / SINGLE).is_file():
        return Shards(directory, _header(directory / SINGLE))
    if (directory / INDEX).is_file():
        return _indexed(directory, directory / INDEX)
    for name in (SINGLE, INDEX):
        if os.path.lexists(directory / name):
            read_bytes(directory / name, most=0)
    pickled = sorted(file.name for glob in PICKLED for file in directory.glob(glob))
    if pickled:
        raise CheckpointError(
            directory,
            f"only pickled weights ({pickled[0]}), which can run code when read",
            SINGLE,
            "convert them where you trust them: LlavaOnevisionForConditionalGeneration"
            ".from_pretrained(DIR).save_pretrained(NEW_DIR)",
        )
    raise CheckpointError(directory, "no weights", f"{SINGLE} or {INDEX}", FETCH)


def _indexed(directory: Path, index: Path) -> Shards:
    weight_map = parse_object(index, read_bytes(index), CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index, "no weight_map", "tensor names and their files", FETCH)
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(index, f"names {short(name)}", "a file beside the index", FETCH)
        if not (directory / name).is_file():
            raise CheckpointError(index, f"names {name}, which is missing", fix=FETCH)
    copies: dict[str, list[StoredTensor]] = {}
    for name in names:
        for tensor, stored in _header(directory / name).items():
            copies.setdefault(tensor, []).append(stored)
    for tensor, places in copies.items():
        if tensor not in weight_map:
            subject = f"{places[0].file}: {tensor}"
            raise CheckpointError(subject, f"not in {INDEX}", "an index of all tensors", FETCH)
        _check_copies(tensor, places)
    for tensor, name in weight_map.items():
        if str(name) not in {stored.file.name for stored in copies.get(tensor, [])}:
            raise CheckpointError(index, f"{tensor} is not in {name}", "the files' tensors", FETCH)
    return Shards(directory, {tensor: places[0] for tensor, places in copies.items()})


def _check_copies(tensor: str, places: list[StoredTensor]) -> None:
    """Which of several files a tensor is taken from must make no difference."""
    first, *others = places
    for other in others:
        alike = (first.shape, first.dtype) == (other.shape, other.dtype)
        with _opened(first.file) as one, _opened(other.file) as two:
            if not alike or not torch.equal(one.get_tensor(tensor), two.get_tensor(tensor)):
                subject = f"{other.file}: {tensor}"
                got = f"other values than in {first.file.name}"
                raise CheckpointError(subject, got, "the same tensor, or one of them", FETCH)


def _header(file: Path) -> dict[str, StoredTensor]:
    with _opened(file) as opened:
        return {
            name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
            for name in opened.keys()  # noqa: SIM118 (no mapping: it has no __iter__)
            for part in (opened.get_slice(name),)
        }


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The open safetensors file; what it raises in the body is a CheckpointError."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        got = f"truncated or not a safetensors file ({error})"
        raise CheckpointError(file, got, fix=FETCH) from error


def check_no_adapter(directory: Path) -> None:
    """No adapter lies in `directory`, beside a model or alone; raises CheckpointError otherwise."""
    for name in ADAPTER_FILES:
        found = sorted([*directory.glob(name), *directory.glob(f"*/{name}")])
        if found:
            alone = not any(directory.glob("model*.safetensors"))
            got = "an adapter alone, without its model" if alone else "an adapter beside the model"
            raise CheckpointError(found[0], got, "one model's weights", MERGE)


def check_signs(shards: Shards) -> None:
    """No name of a tensor shows an adapter, a wrapper or quantised weights.

    Raises CheckpointError, which names the first and says what it is, otherwise.
    """
    for pattern, cause, fix in SIGNS:
        _refuse(shards, filter(pattern.search, shards.tensors), cause, "the model's alone", fix)


def check_left_over(
    shards: Shards, within: Iterable[str], used: Collection[str], expected: str
) -> None:
    """Every tensor of `within` is one of `used`.

    Raises CheckpointError, which names the first that is not, otherwise; `expected` says which
    tensors the configuration has.
    """
    left = [name for name in within if name not in used]
    fix = (
        f"{FETCH}; or let transformers drop it, if it may: LlavaOnevisionForConditionalGeneration"
        ".from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )
    _refuse(shards, left, "no part of the model that config.json describes", expected, fix)


def _refuse(shards: Shards, names: Iterable[str], cause: str, expected: str, fix: str) -> None:
    found = sorted(names)
    if found:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        subject = f"{shards.tensors[found[0]].file}: {found[0]}{more}"
        raise CheckpointError(subject, cause, expected, fix)
