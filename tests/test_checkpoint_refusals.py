"""Checkpoints that are refused, each with one line that says how to fix it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from tests.tiny_checkpoint import (
    FC1,
    change_json,
    change_tensor,
    refusal,
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


# Files.


def remove(name: str, directory: Path) -> None:
    (directory / name).unlink()


def write(name: str, content: bytes, directory: Path) -> None:
    (directory / name).write_bytes(content)


def truncate(keep: float, directory: Path) -> None:
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * keep)])


def only_pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def poison(value: float, directory: Path) -> None:
    weight = torch.zeros(40, 24)
    weight[3, 5] = value
    change_tensor(directory, FC1, weight)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (partial(remove, "config.json"), "config.json: no such file"),
    "invalid config": (partial(write, "config.json", b"{"), "config.json: not valid JSON"),
    "config in no encoding": (partial(write, "config.json", b"\xff\xfe\xfd"), "not UTF-8"),
    "config no object": (partial(write, "config.json", b"[]"), "expected a JSON object"),
    "no preprocessing": (partial(remove, "preprocessor_config.json"), "no preprocessing"),
    "no weights": (partial(remove, "model.safetensors"), "no weights"),
    "pickled weights": (only_pickled, "save_pretrained"),
    "empty weights": (partial(truncate, 0.0), "model.safetensors: truncated or not"),
    "header cut": (partial(truncate, 0.01), "model.safetensors: truncated or not"),
    "data cut": (partial(truncate, 0.9), "model.safetensors: truncated or not"),
    "git-lfs pointer": (
        partial(write, "model.safetensors", LFS_POINTER),
        "model.safetensors: truncated or not",
    ),
    "tensor missing": (lambda d: change_tensor(d, FC1, None), f"expected {FC1}"),
    "tensor misshapen": (
        lambda d: change_tensor(d, FC1, torch.zeros(24, 40)),
        f"{FC1}: shape [24, 40], expected [40, 24]",
    ),
    "tensor quantised": (
        lambda d: change_tensor(d, FC1, torch.zeros(40, 24, dtype=torch.int8)),
        f"{FC1}: stored as I8",
    ),
    "NaN": (partial(poison, float("nan")), f"{FC1}: holds NaN"),
    "infinity": (partial(poison, float("-inf")), f"{FC1}: holds NaN or infinity"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_with_one_line(damage: str, directory: Path) -> None:
    harm, expected = DAMAGE[damage]
    harm(directory)
    assert expected in refusal(directory)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("NaN", "infinity")])
def test_damage_is_found_before_any_tensor_is_read(damage: str, directory: Path) -> None:
    DAMAGE[damage][0](directory)
    with pytest.raises(CheckpointError):
        open_checkpoint(str(directory))


@pytest.fixture
def sharded(model: Any, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", model, "5.x sharded")


def test_a_shard_that_is_missing_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    shard.unlink()
    assert f"names {shard.name}, which is missing" in refusal(sharded)


def test_a_shard_that_is_truncated_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard.name}: truncated or not" in refusal(sharded)


def test_an_index_that_leaves_the_directory_is_refused(sharded: Path) -> None:
    change_json(sharded / "model.safetensors.index.json", weight_map={FC1: "../x.safetensors"})
    assert "names '../x.safetensors'" in refusal(sharded)


def test_an_index_without_a_map_is_refused(sharded: Path) -> None:
    change_json(sharded / "model.safetensors.index.json", weight_map=None)
    assert "no weight_map" in refusal(sharded)


def test_weights_that_vanish_after_opening_are_refused_with_one_line(directory: Path) -> None:
    checkpoint = open_checkpoint(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.vision("encoder.layers.0.mlp.fc1.weight")


# Models.

MODELS: dict[str, tuple[str, dict[str, object], str]] = {
    "another model": ("config", {"model_type": "llava_next"}, "model_type is 'llava_next'"),
    "no model type": ("config", {"model_type": None}, "model_type is None"),
    "a CLIP tower": (
        "config",
        {"vision_config": {"model_type": "clip_vision_model"}},
        "vision tower 'clip_vision_model', expected 'siglip_vision_model'",
    ),
    "an unknown tower": ("config", {"vision_config__model_type": "eye"}, "not a valid config"),
    "a width that is no number": ("config", {"vision_config__hidden_size": "wide"}, "hidden_size"),
    "a width of 0": ("config", {"text_config__hidden_size": 0}, "hidden_size is 0"),
    "heads that divide nothing": (
        "config",
        {"vision_config__num_attention_heads": 5},
        "width 24 is no multiple of 5 heads",
    ),
    "an oblong image": (
        "config",
        {"vision_config__image_size": [16, 32]},
        "image_size is [16, 32]",
    ),
    "a patch wider than the image": (
        "config",
        {"vision_config__patch_size": 32},
        "image of 16 px, patch of 32 px",
    ),
    "grey images": ("config", {"vision_config__num_channels": 1}, "num_channels is 1"),
    "an unknown activation": ("config", {"vision_config__hidden_act": "relu"}, "activation 'relu'"),
    "an unknown projector": ("config", {"projector_hidden_act": "relu"}, "activation 'relu'"),
    "features of several layers": ("config", {"vision_feature_layer": [-1, -2]}, "one layer"),
    "features of no block": ("config", {"vision_feature_layer": 0}, "vision_feature_layer is 0"),
    "features beyond the end": ("config", {"vision_feature_layer": 4}, "one of the 3 blocks"),
    "features before the start": ("config", {"vision_feature_layer": -5}, "one of the 3 blocks"),
    "features without the first": (
        "config",
        {"vision_feature_select_strategy": "default"},
        "vision_feature_select_strategy is 'default', expected 'full'",
    ),
    "features behind the last norm": (
        "config",
        {"vision_config__tie_last_hidden_states": True},
        "tie_last_hidden_states",
    ),
    "quantised weights": ("config", {"quantization_config": {"bits": 4}}, "quantised"),
    "another size": ("preprocessor_config", {"size": {"height": 8, "width": 8}}, "resizes to"),
    "another resampling": ("preprocessor_config", {"resample": 2}, "resample is 2"),
    "no resizing": ("preprocessor_config", {"do_resize": False}, "do_resize is False"),
    "cropping": ("preprocessor_config", {"do_center_crop": True}, "do_center_crop is True"),
    "no size": ("preprocessor_config", {"size": None}, "transformers' default"),
    "one mean": ("preprocessor_config", {"image_mean": [0.5]}, "image_mean"),
    "no spread": ("preprocessor_config", {"image_std": [0.5, 0.0, 0.5]}, "image_std.1 is 0.0"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_the_graphs_cannot_represent_are_refused(case: str, directory: Path) -> None:
    file, change, expected = MODELS[case]
    change_json(directory / f"{file}.json", **change)
    line = refusal(directory)
    assert expected in line
    assert f"{file}.json" in line
    assert len(line) < 500
