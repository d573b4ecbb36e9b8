"""A checkpoint to change, and what transformers reads of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.decoders.qwen2.weights import EMBED, HEAD, language_shapes
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.siglip.tower import SIGLIP
from tests.tiny_checkpoint import tiny_model, write_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DECODER = "language_model.model."


@cache
def _files() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        directory = write_checkpoint(Path(folder), tiny_model())
        return {file.name: file.read_bytes() for file in directory.iterdir()}


def write_tiny(directory: Path) -> Path:
    """`directory` holds a checkpoint of 3 blocks of a tower and 1 of a decoder, as transformers 5
    saves it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in _files().items():
        (directory / name).write_bytes(content)
    return directory


def set_values(path: Path, values: Mapping[str, object]) -> None:
    """The object in the file has `values`; a key `a.b` is key b of the object under a, and a value
    `...` removes it."""
    root = json.loads(path.read_text()) if path.exists() else {}
    for key, value in values.items():
        *parents, last = key.split(".")
        target = root
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is ...:
            target.pop(last, None)
        else:
            target[last] = value
    path.write_text(json.dumps(root))


def set_tensors(directory: Path, values: Mapping[str, Tensor | None]) -> None:
    """The single weights file holds `values` as well; None removes a tensor."""
    stored = load_file(directory / WEIGHTS) | {
        name: tensor for name, tensor in values.items() if tensor is not None
    }
    kept = {name: tensor for name, tensor in stored.items() if values.get(name, 0) is not None}
    save_file(kept, directory / WEIGHTS, metadata={"format": "pt"})


def split(directory: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """The weights lie in the files of `parts`, beside an index of them all."""
    (directory / WEIGHTS).unlink(missing_ok=True)
    for file, tensors in parts.items():
        save_file(dict(tensors), directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_by_transformers(directory: Path) -> Any:
    """transformers' model of the checkpoint, in float32."""
    return LlavaOnevisionForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)


def assert_read_alike(directory: Path) -> None:
    """Every tensor that an export reads is transformers' own."""
    state = read_by_transformers(directory).state_dict()
    checkpoint = open_checkpoint(str(directory))
    language = checkpoint.language()
    for name in SIGLIP.shapes(checkpoint.spec):
        assert torch.equal(checkpoint.vision(name), state[f"model.vision_tower.{name}"]), name
    for name in projector_shapes(checkpoint.spec):
        theirs = state[f"model.multi_modal_projector.{name}"]
        assert torch.equal(checkpoint.projector(name), theirs), name
    for name in language_shapes(language.spec):
        assert torch.equal(language.tensor(name), state[f"model.language_model.{name}"]), name
    embed = torch.cat(list(language.table(EMBED)))
    head = torch.cat(list(language.table(HEAD)))
    assert torch.equal(embed, state[f"model.language_model.{EMBED}"])
    assert torch.equal(head, state[HEAD])
    # The export stores a tied head once, as the embedding.
    assert torch.equal(embed, head) or not language.spec.tied_head


def refusal(directory: Path) -> str:
    """The one line with which opening the checkpoint and its decoder is refused."""
    try:
        open_checkpoint(str(directory)).language()
    except CheckpointError as error:
        line = str(error)
        assert "\n" not in line
        assert "; " in line, "no fix"
        assert len(line) < 1000
        return line
    raise AssertionError("not refused")
