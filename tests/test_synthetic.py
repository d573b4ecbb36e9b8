"""Made-up weights: equal every time, sane at full depth, and alive to what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc.errors import CheckpointError
from stc.export.companions import read_companions
from stc.export.made_up.synthetic import SIZES, Size, random_checkpoint, vision_tensor
from stc.export.models.llava_onevision import described_spec, projector_shapes
from stc.export.towers.siglip.tower import SIGLIP
from stc.manifest import VisionSpec
from tests.squares import square

PATCH = 8


def tower(spec: VisionSpec) -> Any:
    """transformers' tower with the made-up weights of seed 0."""
    config = SiglipVisionConfig(
        image_size=spec.image_height,
        patch_size=spec.patch_size,
        hidden_size=spec.width,
        num_attention_heads=spec.heads,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.blocks,
        vision_use_head=False,
    )
    model = SiglipVisionModel(config)
    weights = {name: vision_tensor(spec, 0, name) for name in SIGLIP.shapes(spec)}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all("post_layernorm" in name for name in missing)
    return model.eval()


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Two frames [2, 3, 112, 112] of a square that moves over a still picture, with a camera's
    noise; which patches [T] changed, and which neither changed nor touch one that did."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(1, 3, 14, 14, generator=generator) * 1.6 - 0.8
    picture = functional.interpolate(coarse, size=(112, 112), mode="bilinear")[0]
    square = torch.rand(3, 24, 24, generator=generator) * 2 - 1
    frames = torch.stack([picture, picture])
    frames[0, :, 40:64, 16:40] = square
    frames[1, :, 40:64, 64:88] = square
    change = (frames[1] - frames[0]).abs().amax(0)
    changed = functional.max_pool2d(change[None], PATCH)[0] > 0
    near = functional.max_pool2d(changed[None].float(), 3, stride=1, padding=1)[0] > 0
    frames += 0.02 * torch.randn(frames.shape, generator=generator)
    return frames, changed.flatten(), ~near.flatten()


# Random weights.


def test_random_weights_have_the_published_geometry() -> None:
    languages = {}
    for size in SIZES:
        spec = random_checkpoint(size).spec
        assert (spec.tokens, spec.pooled, spec.width, spec.heads) == (729, 196, 1152, 16)
        assert (spec.mlp_width, spec.blocks, spec.head_width) == (4304, 26, 72)
        assert (spec.image_mean, spec.image_std) == ((0.5,) * 3, (0.5,) * 3)
        languages[size] = spec.language_width
    assert languages == {"llava-ov-0.5b": 896, "llava-ov-7b": 3584}


@pytest.mark.parametrize("size", SIZES)
def test_random_decoders_have_the_published_rotary_base_and_context(size: Size) -> None:
    decoder = random_checkpoint(size).decoder
    assert decoder is not None
    assert (decoder.rotary_base, decoder.max_positions) == (1e6, 32768)


def test_random_weights_follow_from_seed_and_name() -> None:
    name, other = (
        "encoder.layers.3.self_attn.q_proj.weight",
        "encoder.layers.4.self_attn.q_proj.weight",
    )
    first = random_checkpoint(seed=1)
    tensor = first.vision(name)
    assert torch.equal(tensor, random_checkpoint(seed=1).vision(name))
    assert not torch.equal(tensor, random_checkpoint(seed=2).vision(name))
    assert not torch.equal(tensor, first.vision(other))
    assert first.name == "llava-ov-0.5b random-weights seed 1"


def test_random_tensors_have_the_shapes_a_checkpoint_must_have() -> None:
    checkpoint = random_checkpoint()
    spec = checkpoint.spec.model_copy(update={"blocks": 1})
    for name, shape in SIGLIP.shapes(spec).items():
        tensor = checkpoint.vision(name)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32), name
        assert tensor.std() > 0, name
    for name, shape in projector_shapes(spec).items():
        tensor = checkpoint.projector(name)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, torch.float32), name
        assert tensor.std() > 0, name


def test_a_tensor_outside_the_geometry_is_refused() -> None:
    checkpoint = random_checkpoint()
    for load_one, name in (
        (checkpoint.vision, "encoder.layers.26.mlp.fc1.weight"),
        (checkpoint.projector, "linear_3.weight"),
    ):
        with pytest.raises(CheckpointError, match="no such tensor"):
            load_one(name)


def test_companions_of_random_weights_describe_them(tmp_path: Path) -> None:
    checkpoint = random_checkpoint()
    for name, content in checkpoint.companions().items():
        (tmp_path / name).write_bytes(content)
    assert described_spec(read_companions(tmp_path)) == checkpoint.spec


def test_activations_stay_small_and_tokens_apart_through_26_blocks_in_float16() -> None:
    frames, _, _ = scene()
    spec = random_checkpoint().spec.model_copy(
        update={**square(112, PATCH), "width": 96, "heads": 2, "mlp_width": 384}
    )
    assert spec.blocks == 26
    with torch.no_grad():
        model = tower(spec)
        exact = model(frames[:1], output_hidden_states=True).hidden_states[-1][0]
        half = model.half()(frames[:1].half(), output_hidden_states=True).hidden_states[-1][0]
    assert half.abs().max() < 50
    assert functional.cosine_similarity(half.float(), exact).min() > 0.999
    unit = functional.normalize(exact)
    assert (unit @ unit.T).mean() < 0.6


def test_keys_pick_what_moves_in_every_block() -> None:
    frames, changed, far = scene()
    assert 10 <= int(changed.sum()) <= 50
    spec = random_checkpoint().spec.model_copy(
        update={**square(112, PATCH), "width": 192, "heads": 3, "mlp_width": 768, "blocks": 6}
    )
    with torch.no_grad():
        model = tower(spec)
        states = model(frames, output_hidden_states=True).hidden_states
        for block, hidden in zip(model.encoder.layers, states, strict=False):
            reference, key = block.self_attn.k_proj(block.layer_norm1(hidden))
            score = functional.cosine_similarity(key, reference, dim=1)
            lowest = score.topk(int(changed.sum()), largest=False).indices
            assert changed[lowest].float().mean() > 0.9
            assert score[far].min() > 0.98
            assert score[changed].mean() < 0.95
