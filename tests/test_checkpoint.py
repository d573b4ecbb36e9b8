"""Checkpoints: what is read, and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from stc.export.checkpoint import shards
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.siglip.tower import SIGLIP
from tests.tiny_checkpoint import (
    BLOCKS,
    FC1,
    LAYOUTS,
    Layout,
    change_json,
    change_tensor,
    read_all,
    tiny_model,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def pristine(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), model)


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_vision_and_projector_tensor_is_transformers(
    layout: Layout,
    model: Any,
    tmp_path: Path,
) -> None:
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path, model, layout)))
    state = model.state_dict()
    vision, projector = "model.vision_tower.", "model.multi_modal_projector."
    expected = {name for name in state if name.startswith((vision, projector))}
    for name in SIGLIP.shapes(checkpoint.spec):
        assert torch.equal(checkpoint.vision(name), state[vision + name]), name
        expected.remove(vision + name)
    for name in projector_shapes(checkpoint.spec):
        assert torch.equal(checkpoint.projector(name), state[projector + name]), name
        expected.remove(projector + name)
    # All that the tower runs is read; what stays is behind the features LLaVA-OneVision takes.
    assert all("post_layernorm" in name for name in expected)


def test_language_tensors_are_never_read(
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    class Recorder:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.opened: Any = safe_open(*arguments, **named)

        def __enter__(self) -> Recorder:
            self.opened.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.opened.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self.opened.keys())

        def get_slice(self, name: str) -> Any:
            return self.opened.get_slice(name)

        def get_tensor(self, name: str) -> Any:
            read.append(name)
            return self.opened.get_tensor(name)

    monkeypatch.setattr(shards, "safe_open", Recorder)
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path, model, "5.x sharded")))
    assert read == []
    checkpoint.vision("encoder.layers.0.mlp.fc1.weight")
    assert read == ["vision_tower.encoder.layers.0.mlp.fc1.weight"]
    read_all(tmp_path)
    assert {name.split(".")[0] for name in read} == {"vision_tower", "multi_modal_projector"}


def test_half_precision_weights_are_given_as_float32(tmp_path: Path) -> None:
    model = tiny_model(torch.bfloat16)
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path, model)))
    tensor = checkpoint.projector("linear_1.weight")
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, model.model.multi_modal_projector.linear_1.weight.float())


def test_any_tensor_is_read_by_its_name_on_disk(pristine: Path, model: Any) -> None:
    tensor = open_checkpoint(str(pristine)).shards.load("language_model.model.norm.weight")
    assert torch.equal(tensor, model.model.language_model.norm.weight)


def test_the_spec_is_what_the_files_say(directory: Path) -> None:
    change_json(
        directory / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], rescale_factor=0.25
    )
    change_json(directory / "config.json", vision_config__layer_norm_eps=1e-3)
    spec = open_checkpoint(str(directory)).spec
    assert (*spec.pixel_shape, spec.patch_size, spec.tokens, spec.pooled) == (3, 16, 16, 4, 16, 4)
    assert (spec.width, spec.heads, spec.mlp_width, spec.blocks) == (24, 2, 40, BLOCKS)
    assert (spec.activation, spec.projector_activation) == ("gelu_pytorch_tanh", "gelu")
    assert (spec.language_width, spec.projector_bias) == (20, True)
    assert spec.image_mean == (0.1, 0.2, 0.3)
    assert spec.image_std == (0.5, 0.5, 0.5)
    assert (spec.rescale_factor, spec.layer_norm_eps) == (0.25, 1e-3)


def test_video_preprocessing_goes_before_that_of_images(directory: Path) -> None:
    images = json.loads((directory / "preprocessor_config.json").read_text())
    video = directory / "video_preprocessor_config.json"
    video.write_text(json.dumps({**images, "image_mean": [0.2, 0.2, 0.2]}))
    assert open_checkpoint(str(directory)).spec.image_mean == (0.2, 0.2, 0.2)
    nested = {"video_processor": {**images, "image_mean": [0.3, 0.3, 0.3]}}
    (directory / "processor_config.json").write_text(json.dumps(nested))
    assert open_checkpoint(str(directory)).spec.image_mean == (0.3, 0.3, 0.3)
    (directory / "processor_config.json").write_text(json.dumps({"num_image_tokens": 16}))
    assert open_checkpoint(str(directory)).spec.image_mean == (0.2, 0.2, 0.2)


def test_switched_off_normalisation_changes_nothing_of_a_frame(directory: Path) -> None:
    preprocessor = directory / "preprocessor_config.json"
    change_json(preprocessor, do_normalize=False, do_rescale=False, image_mean=None)
    spec = open_checkpoint(str(directory)).spec
    assert (spec.image_mean, spec.image_std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert spec.rescale_factor == 1.0


@pytest.mark.parametrize("layer", [-1, -2, 1, BLOCKS])
def test_blocks_that_run_end_at_transformers_feature_layer(
    layer: int,
    directory: Path,
    model: Any,
) -> None:
    change_json(directory / "config.json", vision_feature_layer=layer)
    blocks = open_checkpoint(str(directory)).spec.blocks
    tower = model.model.vision_tower
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = tower.embeddings(pixels)
        for block in tower.encoder.layers[:blocks]:
            hidden = block(hidden, attention_mask=None)
        features = tower(pixels, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(hidden, features)


def test_blocks_behind_the_feature_layer_need_no_tensors(directory: Path) -> None:
    change_json(directory / "config.json", vision_feature_layer=1)
    change_tensor(directory, FC1, None)
    assert open_checkpoint(str(directory)).spec.blocks == 1


def test_companions_are_the_files_a_runtime_needs(directory: Path) -> None:
    wanted = {
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{ }",
        "chat_template.jinja": b"template",
        "vocab.json": b'{"a": 0}',
        "merges.txt": b"merges",
        "special_tokens_map.json": b'{"eos_token": "a"}',
    }
    for name, content in {**wanted, "README.md": b"", "training_args.bin": b""}.items():
        (directory / name).write_bytes(content)
    companions = open_checkpoint(str(directory)).companions()
    for name in ("config.json", "generation_config.json", "preprocessor_config.json"):
        assert companions.pop(name) == (directory / name).read_bytes()
    assert companions == wanted
