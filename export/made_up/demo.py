"""The built-in `demo` model: a small LLaVA-OneVision checkpoint, written without a download.

Everything is real but the training: transformers loads it, and it exports and runs as a published
checkpoint does, in seconds on two CPU cores. Its weights are those of
`stc.export.made_up.synthetic`, so what it says about a video means nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig
from transformers import LlavaOnevisionForConditionalGeneration as LlavaOnevision

from stc.export.checkpoint.checkpoint import PROJECTOR_PREFIXES, VISION_PREFIXES
from stc.export.checkpoint.json_object import Described
from stc.export.checkpoint.model_files import preprocessing, to_json
from stc.export.checkpoint.shards import SINGLE
from stc.export.companions import CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR
from stc.export.made_up.demo_tokenizer import LONGEST_PROMPT, DemoTokenizer, demo_tokenizer
from stc.export.made_up.synthetic import WORD_GAIN, projector_tensor, seeded, vision_tensor
from stc.export.models.llava_onevision import vision_spec
from stc.export.towers.siglip.tower import SIGLIP

IMAGE_SIZE = 112
"""Side of the square input, px."""
PATCH_SIZE = 8
"""Side of a patch, px: 14 x 14 tokens, 7 x 7 after pooling."""


def write_demo_checkpoint(directory: Path, seed: int = 0) -> None:
    """`directory` holds the demo checkpoint, equal for equal `seed`: config.json,
    model.safetensors (float32), preprocessing, tokenizer and chat template.

    The weights come last: an interrupted write leaves no checkpoint that opens.
    """
    tokenizer = demo_tokenizer()
    config = demo_config(tokenizer)
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
        CONFIG: config.to_json_string().encode(),
        PREPROCESSOR: to_json(frames),
        VIDEO_PREPROCESSOR: to_json(frames),
        "processor_config.json": to_json(processor),
        "generation_config.json": to_json(generation),
        **tokenizer.files,
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    # Not save_file: its error for a full disk is no OSError.
    (directory / SINGLE).write_bytes(save(_tensors(config, seed), metadata={"format": "pt"}))


def demo_config(tokenizer: DemoTokenizer) -> LlavaOnevisionConfig:
    """The demo's configuration for the vocabulary of `tokenizer`."""
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=192,
        num_attention_heads=3,
        intermediate_size=768,
        num_hidden_layers=6,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=tokenizer.vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
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
        dtype="float32",
    )


def _tensors(config: LlavaOnevisionConfig, seed: int) -> dict[str, Tensor]:
    """Every tensor of the model, under the name published checkpoints have on disk."""
    frames = Described("demo", preprocessing(IMAGE_SIZE))
    spec = vision_spec(Described("demo", config.to_dict()), frames)
    with torch.device("meta"):
        model = LlavaOnevision(config)
    tensors: dict[str, Tensor] = {}
    for full_name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        part, _, name = full_name.removeprefix("model.").partition(".")
        name = name.removeprefix("vision_model.")
        if part == "vision_tower":
            made = name in SIGLIP.shapes(spec)
            tensor = vision_tensor(spec, seed, name) if made else seeded(seed, name, shape)
            tensors[VISION_PREFIXES[0] + name] = tensor
        elif part == "multi_modal_projector":
            tensors[PROJECTOR_PREFIXES[0] + name] = projector_tensor(spec, seed, name)
        elif part == "language_model":
            gain = WORD_GAIN if name == "embed_tokens.weight" else 1.0
            tensors[f"language_model.model.{name}"] = gain * seeded(seed, name, shape)
        else:
            tensors[part] = seeded(seed, part, shape)
    return tensors
