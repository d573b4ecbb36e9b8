"""The demo model: what is in the repository is a checkpoint as published ones are, and sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.demo.tokenizer import FILES, MODEL, demo_tokenizer, made_tokenizer
from stc.export.demo.training.stages import pixel_values
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.siglip.tower import SIGLIP
from stc.scenes.scene import make_scene
from stc.scenes.words import words


def load(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, and what it says of missing and unexpected tensors."""
    model, loading = LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True, dtype=torch.float32
    )
    return model.eval(), loading


def test_the_weights_are_small_and_in_float16() -> None:
    sizes = {file.name: file.stat().st_size for file in MODEL.iterdir()}
    assert sum(sizes.values()) < 14e6
    assert json.loads((MODEL / "config.json").read_text())["dtype"] == "float16"


def test_transformers_loads_the_demo_whole() -> None:
    model, loading = load(MODEL)
    assert not any(loading.values())
    checkpoint = open_checkpoint(str(MODEL))
    state = model.state_dict()
    for name in SIGLIP.shapes(checkpoint.spec):
        assert torch.equal(checkpoint.vision(name), state[f"model.vision_tower.{name}"]), name
    for name in projector_shapes(checkpoint.spec):
        expected = state[f"model.multi_modal_projector.{name}"]
        assert torch.equal(checkpoint.projector(name), expected), name


def test_the_demo_has_the_geometry_it_promises() -> None:
    checkpoint = open_checkpoint(str(MODEL))
    spec = checkpoint.spec
    assert (*spec.pixel_shape, spec.patch_size, spec.tokens, spec.pooled) == (
        3,
        112,
        112,
        8,
        196,
        49,
    )
    assert (spec.width, spec.heads, spec.head_width) == (128, 2, 64)
    assert (spec.mlp_width, spec.blocks, spec.language_width) == (384, 6, 128)
    assert spec.activation == "gelu_pytorch_tanh"
    assert (spec.image_mean, spec.image_std) == ((0.5,) * 3, (0.5,) * 3)


def test_the_demo_tokenizer_gives_every_text_back() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = json.loads((MODEL / "config.json").read_text())
    assert len(tokenizer) == config["text_config"]["vocab_size"]
    for text in (
        "How many people are walking?",
        "Zürich 2026: naïve\n\n\t42 caf\u00e9s \U0001f6b2",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    question = "Is the red car moving to the left?"
    assert len(tokenizer(question).input_ids) < len(question) / 3
    for token, key in (("<image>", "image_token_index"), ("<video>", "video_token_index")):
        assert tokenizer(f"a{token}b").input_ids[1] == config[key]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
    assert config["text_config"]["eos_token_id"] == tokenizer.eos_token_id


def test_the_demo_prompt_has_llava_onevisions_form() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    question = {"type": "text", "text": "What moves?"}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A car."}]}
    asked = {"role": "user", "content": [question, {"type": "video"}, {"type": "image"}]}
    prompt = tokenizer.apply_chat_template(
        [asked, answer, {"role": "user", "content": "And now?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt == (
        "<|im_start|>user <image><video>\nWhat moves?<|im_end|>"
        "<|im_start|>assistant \nA car.<|im_end|>"
        "<|im_start|>user \nAnd now?<|im_end|>"
        "<|im_start|>assistant\n"
    )


def test_the_demo_answers_from_the_video() -> None:
    model, _ = load(MODEL)
    video = model.config.video_token_id
    ids = torch.tensor([[5, *[video] * (2 * 49 + 1), 6]])
    frames = pixel_values(make_scene("validation", 0).frames()[[3, 6]])
    with torch.no_grad():
        logits, others = (
            model(input_ids=ids, pixel_values_videos=clip[None]).logits[0, -1]
            for clip in (frames, frames.flip(-1))
        )
    assert torch.isfinite(logits).all()
    assert (logits - others).abs().max() > 0.01


def test_every_word_of_the_scenes_is_one_text_token() -> None:
    tokenizer = demo_tokenizer()
    for word in words():
        assert [len(tokenizer.encode(mark + word)) for mark in ("", " ")] == [1, 1], word


def test_the_tokenizer_is_the_one_that_training_makes() -> None:
    made = made_tokenizer()
    for name in FILES:
        assert made.files[name] == (MODEL / name).read_bytes(), name
