"""A small LLaVA-OneVision checkpoint with the weights transformers starts training from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from stc.export.made_up.synthetic import preprocessing

IMAGE_SIZE = 30
"""7 x 7 tokens and a rim, 4 x 4 after pooling. The geometry is the so400m heads' of
`tests.vision_cases`, whose traces serve both."""


def write_initial_checkpoint(directory: Path, seed: int) -> Path:
    """`directory` holds it, as `save_pretrained` writes it, with its preprocessing."""
    vision = SiglipVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=4,
        hidden_size=144,
        num_attention_heads=2,
        intermediate_size=80,
        num_hidden_layers=3,
        hidden_act="gelu",
        layer_norm_eps=1e-3,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=48,
        hidden_size=36,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=46,
        video_token_index=47,
        projector_hidden_act="gelu_pytorch_tanh",
        multimodal_projector_bias=False,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing(IMAGE_SIZE)))
    return directory
