"""The safetensors files of a checkpoint: what they hold, and single tensors of them.

Opening reads headers only. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stc.errors import CheckpointError
from stc.export.checkpoint.json_object import FETCH, read_bytes, read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth")
DTYPES = ("F16", "BF16", "F32", "F64")


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
            fix = "use the checkpoint that is not quantised"
            got = f"stored as {stored.dtype}"
            raise CheckpointError(f"{stored.file}: {name}", got, " or ".join(DTYPES), fix)
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
        tensor = _read(stored.file, read).to(torch.float32)
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
    weight_map = read_object(index).get("weight_map")
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
        if not alike or not torch.equal(
            *(_read(one.file, lambda file: file.get_tensor(tensor)) for one in (first, other))
        ):
            subject = f"{other.file}: {tensor}"
            got = f"other values than in {first.file.name}"
            raise CheckpointError(subject, got, "the same tensor, or one of them", FETCH)


def _read(file: Path, read: Callable[[Any], Tensor]) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            return read(opened)
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {
                name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
                for name in opened.keys()  # noqa: SIM118 (no mapping: it has no __iter__)
                for part in (opened.get_slice(name),)
            }
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    got = f"truncated or not a safetensors file ({error})"
    return CheckpointError(file, got, fix=FETCH)
