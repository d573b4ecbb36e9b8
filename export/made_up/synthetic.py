"""Weights made up on demand from a seed: full-size geometry without a download.

The tower's are no trained weights, but no plain noise either. What transformers' initialisation
leaves degenerate is given the form trained towers have: patch filters that follow shapes wider
than a pixel, positions that are alike when they are close and as loud as the patches, queries that
resemble keys, so that attention is local. On video, the keys of unchanged tokens then keep a
cosine of 1 through all blocks, those of changed ones do not, and tokens stay apart from one
another (docs/log.md has the figures). The decoder's are noise: they serve to measure speed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

from stc.errors import CheckpointError
from stc.export.companions import CONFIG, PREPROCESSOR, VIDEO_PREPROCESSOR, Described
from stc.export.decoders.qwen2.spec import language_spec
from stc.export.decoders.qwen2.weights import EMBED, ROWS, language_shapes
from stc.export.layers import Shapes
from stc.export.models.llava_onevision import projector_shapes, vision_spec
from stc.export.towers.part import TowerPart
from stc.export.towers.siglip.tower import SIGLIP
from stc.manifest import LanguageSpec, VisionSpec

Size = Literal["llava-ov-0.5b", "llava-ov-7b"]
SIZES: tuple[Size, ...] = get_args(Size)

FILTER_CELLS = 4
"""Side of a patch filter before it is stretched to the patch, cells."""
BRIGHTNESS_SHARE = 0.5
"""Share of its mean that a patch filter keeps: brightness varies most, and would drown shape."""
PATCH_GAIN = 2.7
"""Brings the patch embedding of video to a standard deviation of about 1, that of positions."""
POSITION_CYCLES = 2.0
"""Standard deviation of the positions' frequencies, cycles per frame side."""
QUERY_LIKENESS = 0.7
"""Correlation of the query matrix with the key matrix."""
QUERY_GAIN = 1.5
"""Sharpness of attention: a token attends to about a tenth of the others."""
RESIDUAL_GAIN = 0.5
"""What a block adds, against its input: far from the range of float16 after 26 blocks."""
RESIDUAL_MATRICES = (".out_proj.weight", ".o_proj.weight", ".fc2.weight", ".down_proj.weight")
WORD_GAIN = 2.0
"""Standard deviation of the logits: one text token stands out."""
ROTARY = {"rope_type": "default", "rope_theta": 1e6}
"""Of the published checkpoints; transformers' default is another base."""
SPREAD = 0.1
"""Standard deviation of biases, and of norm weights round 1."""


def preprocessing(image_size: int) -> dict[str, Any]:
    """What preprocessor_config.json says of frames for a square input of `image_size` px, for
    images and for video alike; mean and spread are SigLIP's."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
        "video_processor_type": "LlavaOnevisionVideoProcessor",
    }


def to_json(value: dict[str, Any]) -> bytes:
    """`value` as an indented JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()


@dataclass(frozen=True)
class RandomCheckpoint:
    """Weights that follow from `seed` and each tensor's name; satisfies VisionWeights.

    Nothing is held between calls: a tensor asked for twice is made twice, equal.
    """

    name: str
    spec: VisionSpec
    seed: int
    files: dict[str, bytes]
    decoder: LanguageSpec | None = None
    tower: TowerPart = SIGLIP

    def vision(self, name: str) -> Tensor:
        """The tensor `name` below the vision model, float32.

        Raises CheckpointError when the geometry has no such tensor.
        """
        return vision_tensor(self.spec, self.seed, name)

    def projector(self, name: str) -> Tensor:
        """The tensor `name` below the projector, float32.

        Raises CheckpointError when the geometry has no such tensor.
        """
        return seeded(self.seed, name, _shape(projector_shapes(self.spec), name))

    def language(self) -> RandomLanguage | None:
        """The decoder, None where only a tower was asked for."""
        return None if self.decoder is None else RandomLanguage(self.decoder, self.seed)

    def companions(self) -> dict[str, bytes]:
        """Configuration and preprocessing of the geometry; there is no tokenizer."""
        return dict(self.files)


@dataclass(frozen=True)
class RandomLanguage:
    """A decoder that follows from `seed` and each tensor's name; satisfies LanguageWeights."""

    spec: LanguageSpec
    seed: int

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` below the decoder, float32.

        Raises CheckpointError when the geometry has no such tensor.
        """
        return seeded(self.seed, name, _shape(language_shapes(self.spec), name))

    def table(self, name: str) -> Iterator[Tensor]:
        """EMBED or HEAD in slices of ROWS rows, each following from its place."""
        source = EMBED if self.spec.tied_head else name
        for start in range(0, self.spec.vocabulary, ROWS):
            rows = min(ROWS, self.spec.vocabulary - start)
            yield WORD_GAIN * seeded(self.seed, f"{source}/{start}", (rows, self.spec.width))


def random_checkpoint(size: Size = "llava-ov-0.5b", seed: int = 0) -> RandomCheckpoint:
    """Random weights in the geometry of a published checkpoint."""
    config = _config(size)
    name = f"{size} random-weights seed {seed}"
    frames = preprocessing(config.vision_config.image_size)
    spec = vision_spec(Described(name, config.to_dict()), Described(name, frames))
    files = {
        CONFIG: config.to_json_string().encode(),
        PREPROCESSOR: to_json(frames),
        VIDEO_PREPROCESSOR: to_json(frames),
    }
    decoder = language_spec(Described(name, config.to_dict()), Described(name, {}))
    return RandomCheckpoint(name, spec, seed, files, decoder)


def vision_tensor(spec: VisionSpec, seed: int, name: str) -> Tensor:
    """The tensor `name` below the vision model that follows from `seed`, float32."""
    shape = _shape(SIGLIP.shapes(spec), name)
    if name == "embeddings.patch_embedding.weight":
        return _filters(spec, seed, name)
    if name == "embeddings.position_embedding.weight":
        return _positions(spec, seed, name)
    if name.endswith(".q_proj.weight"):
        key = vision_tensor(spec, seed, name.replace(".q_proj.", ".k_proj."))
        own = _matrix(seed, name, shape)
        return QUERY_GAIN * (QUERY_LIKENESS * key + math.sqrt(1 - QUERY_LIKENESS**2) * own)
    return seeded(seed, name, shape)


def seeded(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """The matrix, bias or norm weight of a transformer that follows from `seed`, float32.

    A matrix keeps the variance of what it multiplies, unless it writes to the residual stream.
    """
    if len(shape) == 2:
        gain = RESIDUAL_GAIN if name.endswith(RESIDUAL_MATRICES) else 1.0
        return gain * _matrix(seed, name, shape)
    centre = 1.0 if name.endswith(".weight") else 0.0
    return centre + SPREAD * _normal(seed, name, shape)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(name, "no such tensor in this geometry", fix="use its names")
    return shapes[name]


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(_generator(seed, name).standard_normal(shape, dtype=np.float32))


def _matrix(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """A matrix [fan_out, fan_in] of variance 1 / fan_in."""
    return _normal(seed, name, shape) / math.sqrt(shape[1])


def _filters(spec: VisionSpec, seed: int, name: str) -> Tensor:
    """Patch filters without detail finer than a cell: natural images have little of it, and
    video compression and sensors add noise there."""
    cells = _normal(seed, name, (spec.width, 3, FILTER_CELLS, FILTER_CELLS))
    cells = cells - (1 - BRIGHTNESS_SHARE) * cells.mean((1, 2, 3), keepdim=True)
    side = spec.patch_size
    filters = nn.functional.interpolate(cells, size=(side, side), mode="bilinear")
    return filters * (PATCH_GAIN * FILTER_CELLS * math.sqrt(3) / (3 * side**2))


def _positions(spec: VisionSpec, seed: int, name: str) -> Tensor:
    """One plane wave per channel, of random direction, frequency and phase: the likeness of two
    positions falls smoothly with their distance."""
    generator = _generator(seed, name)
    cycles = POSITION_CYCLES * generator.standard_normal((2, spec.width))
    phase = generator.uniform(0, 2 * math.pi, spec.width)
    down, across = (np.arange(count) / count for count in (spec.grid.rows, spec.grid.columns))
    places = down[:, None, None] * cycles[0] + across[None, :, None] * cycles[1]
    waves = math.sqrt(2) * np.cos(2 * math.pi * places + phase)
    return torch.from_numpy(waves.reshape(spec.tokens, spec.width).astype(np.float32))


def _config(size: Size) -> LlavaOnevisionConfig:
    vision = SiglipVisionConfig(
        image_size=384,
        patch_size=14,
        hidden_size=1152,
        num_attention_heads=16,
        intermediate_size=4304,
        num_hidden_layers=26,
        vision_use_head=False,
    )
    if size == "llava-ov-0.5b":
        text = Qwen2Config(
            vocab_size=152000,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            rope_parameters=ROTARY,
            tie_word_embeddings=True,
        )
    else:
        text = Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_parameters=ROTARY,
        )
    return LlavaOnevisionConfig(vision_config=vision, text_config=text)
