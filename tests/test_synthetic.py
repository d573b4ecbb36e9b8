"""Made-up weights: equal every time, sane at full depth, and alive to what moves."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.companions import read_companions
from stc.export.demo.checkpoint import write_demo_checkpoint
from stc.export.made_up.synthetic import SIZES, Size, random_checkpoint, vision_tensor
from stc.export.models.llava_onevision import described_spec, projector_shapes
from stc.export.towers.siglip.tower import SIGLIP
from stc.manifest import VisionSpec
from tests.squares import square

PATCH = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written") / "demo"
    write_demo_checkpoint(directory)
    return directory


def load(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, and what it says of missing and unexpected tensors."""
    model, loading = LlavaOnevisionForConditionalGeneration.from_pretrained(
        directory, output_loading_info=True
    )
    return model.eval(), loading


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


# The demo checkpoint.


def test_transformers_loads_the_demo_whole(demo: Path) -> None:
    model, loading = load(demo)
    assert not any(loading.values())
    checkpoint = open_checkpoint(str(demo))
    state = model.state_dict()
    for name in SIGLIP.shapes(checkpoint.spec):
        assert torch.equal(checkpoint.vision(name), state[f"model.vision_tower.{name}"]), name
    for name in projector_shapes(checkpoint.spec):
        expected = state[f"model.multi_modal_projector.{name}"]
        assert torch.equal(checkpoint.projector(name), expected), name


def test_the_demo_has_the_geometry_it_promises(demo: Path) -> None:
    checkpoint = open_checkpoint(str(demo))
    spec = checkpoint.spec
    assert checkpoint.name == "demo"
    assert (*spec.pixel_shape, spec.patch_size, spec.tokens, spec.pooled) == (
        3,
        112,
        112,
        8,
        196,
        49,
    )
    assert (spec.width, spec.heads, spec.head_width) == (192, 3, 64)
    assert (spec.mlp_width, spec.blocks, spec.language_width) == (768, 6, 128)
    assert spec.activation == "gelu_pytorch_tanh"
    assert (spec.image_mean, spec.image_std) == ((0.5,) * 3, (0.5,) * 3)


def test_the_demo_is_equal_every_time_and_differs_by_seed(demo: Path, tmp_path: Path) -> None:
    def digests(directory: Path) -> dict[str, str]:
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()
        }

    first = digests(demo)
    write_demo_checkpoint(tmp_path)
    assert digests(tmp_path) == first
    write_demo_checkpoint(tmp_path, seed=1)
    second = digests(tmp_path)
    assert {name for name in first if first[name] != second[name]} == {"model.safetensors"}


def test_an_interrupted_demo_does_not_open(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_demo_checkpoint(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stc.export.demo.checkpoint.save", fail)
    with pytest.raises(KeyboardInterrupt):
        write_demo_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(str(tmp_path))


def test_the_demo_tokenizer_gives_every_text_back(demo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    config = json.loads((demo / "config.json").read_text())
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


def test_the_demo_prompt_has_llava_onevisions_form(demo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
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


def test_the_demo_answers_from_the_video(demo: Path) -> None:
    model, _ = load(demo)
    frames, _, _ = scene()
    video = model.config.video_token_id
    ids = torch.tensor([[5, *[video] * (2 * 49 + 1), 6]])
    with torch.no_grad():
        logits, others = (
            model(input_ids=ids, pixel_values_videos=clip[None]).logits[0, -1]
            for clip in (frames, frames.flip(-1))
        )
    assert torch.isfinite(logits).all()
    assert 0.5 < logits.std() < 5
    assert (logits - others).abs().max() > 0.01


def test_keys_of_the_demo_pick_what_moves_in_every_block(demo: Path) -> None:
    model, _ = load(demo)
    vision = model.model.vision_tower
    frames, changed, far = scene()
    assert 10 <= int(changed.sum()) <= 50
    with torch.no_grad():
        states = vision(frames, output_hidden_states=True).hidden_states
        for block, hidden in zip(vision.encoder.layers, states, strict=False):
            reference, key = block.self_attn.k_proj(block.layer_norm1(hidden))
            score = functional.cosine_similarity(key, reference, dim=1)
            lowest = score.topk(int(changed.sum()), largest=False).indices
            assert changed[lowest].float().mean() > 0.9
            assert score[far].min() > 0.98
            assert score[changed].mean() < 0.95
