"""Stored tensors: each is read, known to play no part, or refused by its name and true cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stc.export import command
from tests.field.checkpoint_cases import (
    DECODER,
    INDEX,
    WEIGHTS,
    assert_read_alike,
    refusal,
    set_tensors,
    set_values,
    split,
    write_tiny,
)
from tests.tiny_checkpoint import LAYOUTS, Layout, tiny_model, write_checkpoint

EMBED = f"{DECODER}embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
QUERY = f"{DECODER}layers.0.self_attn.q_proj"
TOWER = "vision_tower.encoder.layers.1.self_attn.q_proj"
LAST = "vision_tower.encoder.layers.2"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return write_tiny(tmp_path / "tiny")


@pytest.mark.parametrize("head", ["own", "equal", "none", "alone"])
@pytest.mark.parametrize(
    "tie",
    [
        {"tie_word_embeddings": True, "text_config.tie_word_embeddings": True},
        {"tie_word_embeddings": True, "text_config.tie_word_embeddings": False},
        {"tie_word_embeddings": False, "text_config.tie_word_embeddings": True},
        {"tie_word_embeddings": ..., "text_config.tie_word_embeddings": True},
        {"tie_word_embeddings": True, "text_config.tie_word_embeddings": ...},
    ],
    ids=["both", "top, not text", "text, not top", "text alone", "top alone"],
)
def test_a_head_is_tied_where_transformers_ties_it(
    tie: dict[str, object], head: str, directory: Path
) -> None:
    """Merged fine-tunes say that the head is tied and store one of their own: that one is used."""
    set_values(directory / "config.json", tie)
    stored = load_file(directory / WEIGHTS)
    changes: dict[str, dict[str, Tensor | None]] = {
        "own": {},
        "equal": {HEAD: stored[EMBED].clone()},
        "none": {HEAD: None},
        "alone": {EMBED: None},
    }
    set_tensors(directory, changes[head])
    assert_read_alike(directory)


def test_a_head_that_is_tied_nowhere_is_the_stored_one(directory: Path) -> None:
    """transformers' default is an own head: neither place says anything."""
    nowhere = {"tie_word_embeddings": ..., "text_config.tie_word_embeddings": ...}
    set_values(directory / "config.json", nowhere)
    assert_read_alike(directory)
    set_tensors(directory, {HEAD: None})
    assert HEAD in refusal(directory)


def test_a_stored_head_of_another_shape_is_refused(directory: Path) -> None:
    """A vocabulary that grew in the head alone."""
    set_values(directory / "config.json", {"tie_word_embeddings": True})
    set_tensors(directory, {HEAD: torch.zeros(44, 20)})
    assert f"{HEAD}: shape [44, 20], expected [40, 20]" in refusal(directory)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_whole(layout: Layout, tmp_path: Path) -> None:
    """What transformers 4 and 5 write: nothing of it is left over."""
    assert_read_alike(write_checkpoint(tmp_path / "tiny", tiny_model(), layout))


UNUSED = {
    "vision_tower.head.probe": torch.zeros(1, 1, 24),
    "vision_tower.head.attention.in_proj_weight": torch.zeros(72, 24),
    "vision_tower.head.attention.out_proj.bias": torch.zeros(24),
    "vision_tower.head.layernorm.weight": torch.zeros(24),
    "vision_tower.head.mlp.fc1.weight": torch.zeros(40, 24),
    "vision_tower.embeddings.position_ids": torch.arange(16)[None],
    f"{DECODER}rotary_emb.inv_freq": torch.ones(5),
    f"{DECODER}layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5),
}


def test_tensors_that_play_no_part_are_known(directory: Path) -> None:
    """Heads and buffers of other uses and older versions, and the tower's dropped last block."""
    stored = load_file(directory / WEIGHTS)
    dropped = {
        name.replace(LAST, "vision_tower.encoder.layers.3"): tensor.clone()
        for name, tensor in stored.items()
        if name.startswith(LAST)
    }
    set_tensors(directory, UNUSED | dropped)
    assert_read_alike(directory)
    set_values(directory / "config.json", {"vision_feature_layer": 1})
    refused_beyond = "vision_tower.encoder.layers.4.mlp.fc1.bias"
    set_tensors(directory, {refused_beyond: torch.zeros(40)})
    assert refused_beyond in refusal(directory)


ADAPTERS = [
    *(f"{part}.lora_{side}.weight" for part in (QUERY, TOWER) for side in "AB"),
    f"{QUERY}.lora_A.default.weight",
    f"{QUERY}.lora_magnitude_vector",
    f"{QUERY}.lora_magnitude_vector.default.weight",
    f"{QUERY}.ia3_l.default",
    f"{QUERY}.base_layer.weight",
    f"{DECODER}embed_tokens.lora_embedding_A.default",
    "multi_modal_projector.linear_1.lora_A.weight",
    "multi_modal_projector.modules_to_save.default.linear_1.weight",
    "multi_modal_projector.original_module.linear_1.weight",
    "lm_head.modules_to_save.default.weight",
    "prompt_encoder.default.embedding.weight",
    f"base_model.model.{QUERY}.weight",
    f"base_model.model.model.{QUERY}.lora_B.weight",
]
QUANTISED = [
    *(f"{part}.weight_scale" for part in (QUERY, TOWER, "multi_modal_projector.linear_1")),
    *(
        f"{QUERY}.{name}"
        for name in (
            "weight_scale_inv",
            "weight_scale_2",
            "input_scale",
            "weight_zero_point",
            "qweight",
            "qzeros",
            "scales",
            "g_idx",
            "weight.absmax",
            "weight.nested_absmax",
            "weight.quant_map",
            "weight.quant_state.bitsandbytes__nf4",
            "SCB",
            "weight_packed",
            "weight_shape",
            "k_scale",
        )
    ),
]
WRAPPED = [
    f"{wrapper}{QUERY}.weight"
    for wrapper in ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod.")
] + [f"{DECODER}layers.0._checkpoint_wrapped_module.mlp.up_proj.weight"]
UNKNOWN = [
    f"{DECODER}layers.1.mlp.up_proj.weight",
    f"{DECODER}layers.0.self_attn.o_proj.bias",
    f"{DECODER}layers.0.self_attn.q_norm.weight",
    "vision_tower.encoder.layers.7.mlp.fc1.weight",
    "vision_tower.encoder.layers.3.mlp.fc1.weight",
    "vision_tower.encoder.layers.0.layer_scale1",
    "vision_tower.post_layernorm.gain",
    "multi_modal_projector.linear_3.weight",
    "model.vision_tower.encoder.layers.0.mlp.fc1.bias",
    "lm_head.weight",
    "language_model.lm_head.bias",
    "v_head.summary.weight",
]


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        *((name, "an adapter that is not merged", "merge the adapter first") for name in ADAPTERS),
        *((name, "quantised", "the checkpoint that is not quantised") for name in QUANTISED),
        *((name, "wrapper", "save the model inside the wrapper") for name in WRAPPED),
        *((name, "no part of the model", "save_pretrained") for name in UNKNOWN),
    ],
)
def test_a_tensor_left_over_is_refused_by_name_and_cause(
    name: str, cause: str, fix: str, directory: Path
) -> None:
    """Adapters, scales, wrappers and strange tensors beside a model whose own are all there: what
    they change would be missing from the export."""
    set_tensors(directory, {name: torch.ones(4, 4)})
    line = refusal(directory)
    assert f"{WEIGHTS}: {name}" in line
    assert cause in line
    assert fix in line


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_checkpoint_saved_whole_with_a_wrapper_is_told_so(prefix: str, directory: Path) -> None:
    """torch.compile, data parallelism, PEFT: every name starts with the wrapper's, none is read."""
    stored = load_file(directory / WEIGHTS)
    save_file({prefix + name: tensor for name, tensor in stored.items()}, directory / WEIGHTS)
    line = refusal(directory)
    assert prefix in line
    assert "is missing" not in line


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_weights_of_few_bits_are_refused(dtype: torch.dtype, directory: Path) -> None:
    """Quantised in place: a weight of integers or of 8 bits."""
    set_tensors(directory, {f"{QUERY}.weight": torch.zeros(20, 20).to(dtype)})
    line = refusal(directory)
    assert f"{QUERY}.weight: stored as" in line
    assert "not quantised" in line


@pytest.mark.parametrize(
    "name",
    [
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model-00001-of-00002.safetensors",
        "adapter_model.safetensors.index.json",
        "pytorch_lora_weights.safetensors",
        "adapters.safetensors",
        "non_lora_trainables.bin",
        "adapter/adapter_config.json",
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_s_files_are_refused(name: str, alone: bool, directory: Path) -> None:
    """transformers would load the adapter over the model; a folder may hold nothing else."""
    if alone:
        for file in directory.iterdir():
            file.unlink()
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_text("{}")
    line = refusal(directory)
    assert "merge the adapter first" in line
    assert ("an adapter alone" in line) == alone


def test_export_writes_nothing_of_a_checkpoint_with_an_adapter(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command exits 2 with one line; it used to export the base model."""
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    output = tmp_path / "bundle"
    flags = ["--model", "llava-ov", "--checkpoint", str(directory), "--output", str(output)]
    assert command.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not output.exists()


# Files and their index.


@pytest.fixture
def halves(directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of `directory` in two parts."""
    stored = load_file(directory / WEIGHTS)
    names = sorted(stored)
    middle = len(names) // 2
    return (
        {name: stored[name] for name in names[:middle]},
        {name: stored[name] for name in names[middle:]},
    )


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Halves = tuple[dict[str, Tensor], dict[str, Tensor]]


def test_a_tensor_in_two_files_is_read_where_both_agree(directory: Path, halves: Halves) -> None:
    """A copy that a resumed download left: equal values are no harm, others are refused."""
    first, second = halves
    name = next(iter(second))
    split(directory, {A: first | {name: second[name]}, B: second})
    assert_read_alike(directory)
    split(directory, {A: first | {name: second[name] + 1}, B: second})
    line = refusal(directory)
    assert f"{B}: {name}: other values than in {A}" in line


def test_an_index_of_other_files_is_refused(directory: Path, halves: Halves) -> None:
    """A shard of another version beside the index: one names what the other does not hold."""
    first, second = halves
    split(directory, {A: first, B: second})
    name = next(iter(second))
    whole = json.loads((directory / INDEX).read_text())["weight_map"]
    changed = {
        "unnamed": {n: file for n, file in whole.items() if n != name},
        "elsewhere": whole | {name: A},
        "nowhere": whole | {"image_newline2": B},
    }
    for told, weight_map in (
        (f"{B}: {name}: not in {INDEX}", changed["unnamed"]),
        (f"{name} is not in {A}", changed["elsewhere"]),
        (f"image_newline2 is not in {B}", changed["nowhere"]),
    ):
        set_values(directory / INDEX, {"weight_map": weight_map})
        assert told in refusal(directory)


def test_the_single_file_goes_before_an_index(directory: Path, halves: Halves) -> None:
    """Left-over shards of an older save beside model.safetensors: transformers reads none."""
    single = (directory / WEIGHTS).read_bytes()
    first, second = halves
    split(directory, {A: {name: tensor + 1 for name, tensor in first.items()}, B: second})
    (directory / WEIGHTS).write_bytes(single)
    assert_read_alike(directory)


@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
def test_weights_that_are_no_file_are_told(name: str, directory: Path) -> None:
    """A directory or a dangling link in the place of the weights."""
    (directory / WEIGHTS).unlink()
    (directory / name).mkdir()
    assert "Is a directory" in refusal(directory)
    shutil.rmtree(directory / name)
    (directory / name).symlink_to("gone")
    assert "a link to a file that is missing" in refusal(directory)
