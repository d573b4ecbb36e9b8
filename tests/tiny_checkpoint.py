"""A tiny random LLaVA-OneVision checkpoint, in the layouts transformers' versions write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.made_up.synthetic import preprocessing
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.siglip.tower import SIGLIP

Layout = Literal["4.x", "5.x", "5.x sharded", "state dict", "4.x state dict"]
LAYOUTS: tuple[Layout, ...] = ("4.x", "5.x", "5.x sharded", "state dict", "4.x state dict")
BLOCKS = 3
FC1 = "vision_tower.encoder.layers.1.mlp.fc1.weight"
"""A tensor's name on disk."""


def tiny_model(dtype: torch.dtype = torch.float32) -> Any:
    """A model of 16 px, 16 tokens, 3 blocks; every parameter random, norms and biases too."""
    vision = SiglipVisionConfig(
        image_size=16,
        patch_size=4,
        hidden_size=24,
        num_attention_heads=2,
        intermediate_size=40,
        num_hidden_layers=BLOCKS,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=40,
        hidden_size=20,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=38,
        video_token_index=39,
        image_grid_pinpoints=[[16, 16]],
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def write_checkpoint(directory: Path, model: Any, layout: Layout = "5.x") -> Path:
    """`model` saved in `directory` with the names and files of `layout`."""
    shard_size = "10KB" if layout == "5.x sharded" else "1GB"
    model.save_pretrained(directory, max_shard_size=shard_size)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing(16)))
    weights = directory / "model.safetensors"
    if layout == "4.x":
        stored = load_file(weights)
        _save(weights, {n.replace("tower.", "tower.vision_model."): t for n, t in stored.items()})
    elif layout == "state dict":
        _save(weights, dict(model.state_dict()))
    elif layout == "4.x state dict":
        state = model.state_dict()
        _save(weights, {n.replace("tower.", "tower.vision_model."): t for n, t in state.items()})
    return directory


def change_json(path: Path, **values: object) -> None:
    """Sets keys of the object in the file; a value of None removes its key, a key `a__b` stands
    for key b of the object under key a."""
    root = json.loads(path.read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        target = root
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path.write_text(json.dumps(root))


def change_tensor(directory: Path, name: str, tensor: Tensor | None) -> None:
    """Replaces, or with None removes, tensor `name` of a single-file checkpoint."""
    stored = load_file(directory / "model.safetensors")
    del stored[name]
    if tensor is not None:
        stored[name] = tensor
    _save(directory / "model.safetensors", stored)


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def read_all(id_or_dir: object) -> None:
    """Opens a checkpoint and reads every tensor of its vision tower and projector."""
    checkpoint = open_checkpoint(str(id_or_dir))
    for name in SIGLIP.shapes(checkpoint.spec):
        checkpoint.vision(name)
    for name in projector_shapes(checkpoint.spec):
        checkpoint.projector(name)


def refusal(id_or_dir: object) -> str:
    """The one line with which opening and reading everything is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_all(id_or_dir)
    line = str(caught.value)
    assert "\n" not in line
    assert "; " in line, "no fix"
    return line
