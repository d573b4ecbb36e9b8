"""A small random LLaVA-OneVision with a tokenizer, as transformers' model and as a bundle."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from stc.bundles.bundle import Bundle
from stc.bundles.text_table import text_table
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.export.bundle_export import export_bundle
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.demo.tokenizer import demo_tokenizer
from stc.manifest import Group, Precision
from stc.prompts.prompt import Prompt
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.language.model import LanguageModel
from stc.settings import PRESETS
from tests.kept_tokens import MAX_POSITIONS, WIDTH
from tests.once import SHARED
from tests.tiny_checkpoint import write_checkpoint

BLOCKS = 3
BEFORE = len(demo_tokenizer().prompt_parts()[0])
"""Text tokens before the video."""


@dataclass(frozen=True)
class LanguageCase:
    """transformers' model, its checkpoint's directory and the bundle made of it."""

    model: Any
    checkpoint: Path
    bundle: Bundle

    def language(
        self, buckets: KvBuckets | None = None, *, weights: str | None = None
    ) -> LanguageModel:
        """The bundle's decoder on ONNX Runtime."""
        manifest = self.bundle.manifest
        assert manifest.language is not None
        return LanguageModel(
            OnnxRuntimeBackend(self.bundle, weights=weights),
            manifest.language,
            manifest.provenance.precision,
            text_table(self.bundle, manifest.language),
            buckets,
        )

    def prompt(self) -> Prompt:
        """The checkpoint's prompt."""
        assert self.bundle.manifest.language is not None
        return Prompt(self.bundle.companions(), self.bundle.manifest.language, self.bundle.root)


def language_model(*, tied: bool = True) -> Any:
    """A model of 4 query heads on 2 key heads, every parameter random."""
    tokenizer = demo_tokenizer()
    vision = SiglipVisionConfig(
        image_size=16,
        patch_size=4,
        hidden_size=24,
        num_attention_heads=2,
        intermediate_size=40,
        num_hidden_layers=2,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=tokenizer.vocabulary,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        eos_token_id=tokenizer.ids["<|im_end|>"],
        tie_word_embeddings=tied,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.ids["<image>"],
        video_token_index=tokenizer.ids["<video>"],
        image_grid_pinpoints=[[16, 16]],
        tie_word_embeddings=tied,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    model.generation_config.eos_token_id = tokenizer.ids["<|im_end|>"]
    model.generation_config.pad_token_id = tokenizer.ids["<|endoftext|>"]
    return model.eval()


def language_case(
    *, tied: bool = True, precision: Precision = "fp32", int4: Group | None = None
) -> LanguageCase:
    """The model and its bundle, made once per run; whichever test is first sees no output."""
    with redirect_stderr(io.StringIO()):
        return _made(tied, precision, int4)


@cache
def _made(tied: bool, precision: Precision, int4: Group | None) -> LanguageCase:
    model = language_model(tied=tied)

    def make(root: Path) -> None:
        write_checkpoint(root / "checkpoint", model)
        for name, content in demo_tokenizer().files.items():
            (root / "checkpoint" / name).write_bytes(content)
        weights = open_checkpoint(str(root / "checkpoint"))
        export_bundle(
            weights,
            root / "bundle",
            language=weights.language(),
            int4=int4,
            model="llava-ov",
            kind="checkpoint",
            precision=precision,
            settings=PRESETS["off"],
            force=False,
            tick=lambda _: None,
        )

    root = SHARED(f"language-{tied}-{precision}-{int4}", make)
    return LanguageCase(model, root / "checkpoint", Bundle.open(root / "bundle"))
