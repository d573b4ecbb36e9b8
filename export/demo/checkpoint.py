"""The demo model's geometry, and how it is written as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from stc.export.checkpoint.checkpoint import PROJECTOR_PREFIXES, VISION_PREFIXES
from stc.export.checkpoint.shards import SINGLE
from stc.export.companions import CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR
from stc.export.demo.tokenizer import LONGEST_PROMPT, DemoTokenizer
from stc.export.made_up.synthetic import preprocessing, to_json

IMAGE_SIZE = 112
"""Side of the square input, px."""
PATCH_SIZE = 8
"""Side of a patch, px: 14 x 14 tokens, 7 x 7 after pooling."""


def write_checkpoint(directory: Path, tokenizer: DemoTokenizer, model: Any) -> None:
    """`directory` holds `model` as a checkpoint: config.json, model.safetensors (float16),
    preprocessing, tokenizer and chat template.

    The weights come last: an interrupted write leaves no checkpoint that opens.
    """
    frames = preprocessing(IMAGE_SIZE)
    processor = {
        "image_token": "<image>",
        "num_image_tokens": (IMAGE_SIZE // PATCH_SIZE) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
    }
    generation = {
        "bos_token_id": tokenizer.ids["<|endoftext|>"],
        "eos_token_id": tokenizer.ids["<|im_end|>"],
        "pad_token_id": tokenizer.ids["<|endoftext|>"],
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SINGLE).unlink(missing_ok=True)
    files = {
        CONFIG: demo_config(tokenizer).to_json_string().encode(),
        PREPROCESSOR: to_json(frames),
        VIDEO_PREPROCESSOR: to_json(frames),
        "processor_config.json": to_json(processor),
        "generation_config.json": to_json(generation),
        **tokenizer.files,
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    # Not save_file: its error for a full disk is no OSError.
    (directory / SINGLE).write_bytes(save(_tensors(model), metadata={"format": "pt"}))


def demo_config(tokenizer: DemoTokenizer) -> LlavaOnevisionConfig:
    """The demo's configuration for the vocabulary of `tokenizer`."""
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=128,
        num_attention_heads=2,
        intermediate_size=384,
        num_hidden_layers=6,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=tokenizer.vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST_PROMPT,
        bos_token_id=tokenizer.ids["<|endoftext|>"],
        eos_token_id=tokenizer.ids["<|im_end|>"],
        pad_token_id=tokenizer.ids["<|endoftext|>"],
        tie_word_embeddings=True,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        architectures=["LlavaOnevisionForConditionalGeneration"],
        image_token_index=tokenizer.ids["<image>"],
        video_token_index=tokenizer.ids["<video>"],
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE], [IMAGE_SIZE, 2 * IMAGE_SIZE]],
        tie_word_embeddings=True,
        dtype="float16",
    )


def _tensors(model: Any) -> dict[str, Tensor]:
    """Every tensor of `model` in float16, under the name published checkpoints have on disk."""
    prefixes = {
        "vision_tower": VISION_PREFIXES[0],
        "multi_modal_projector": PROJECTOR_PREFIXES[0],
        "language_model": "language_model.model.",
    }
    tensors: dict[str, Tensor] = {}
    for full_name, parameter in model.named_parameters():
        part, _, name = full_name.removeprefix("model.").partition(".")
        on_disk = prefixes.get(part, part) + name.removeprefix("vision_model.")
        tensors[on_disk] = parameter.detach().half().cpu().contiguous()
    return tensors
