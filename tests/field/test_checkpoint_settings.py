"""Settings in every place that transformers reads them from: read as it does, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, GenerationConfig
from transformers.models.llava_onevision import image_processing_pil_llava_onevision as theirs
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionForConditionalGeneration,
)

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.companions import read_companions
from stc.export.decoders.qwen2.spec import described_language
from stc.export.made_up.synthetic import preprocessing
from stc.runtime.vision.preprocess import Preprocessor
from tests.field.checkpoint_cases import read_by_transformers, refusal, set_values, write_tiny

CONFIG, GENERATION = "config.json", "generation_config.json"
IMAGES, VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"
PROCESSOR = "processor_config.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return write_tiny(tmp_path / "tiny")


# Stop tokens.

TOKENS = st.one_of(st.none(), st.integers(0, 39), st.lists(st.integers(0, 39), max_size=3))


def _stops(config: Mapping[str, object], generation: Mapping[str, object] | None) -> Any:
    """What we read, and what transformers' generate would stop at."""
    with TemporaryDirectory() as folder:
        directory = write_tiny(Path(folder))
        set_values(directory / CONFIG, config)
        if generation is None:
            (directory / GENERATION).unlink()
        else:
            (directory / GENERATION).write_text(json.dumps(generation))
        try:
            found = GenerationConfig.from_pretrained(directory)
        except OSError:
            found = GenerationConfig.from_pretrained(
                directory, config_file_name=CONFIG, _from_model_config=True
            )
        stop = found.eos_token_id
        stops = [] if stop is None else stop if isinstance(stop, list) else [stop]
        return set(described_language(read_companions(directory)).stop_token_ids), set(stops)


@settings(max_examples=60, deadline=None)
@given(top=st.just(...) | TOKENS, text=st.just(...) | TOKENS, generation=st.none() | TOKENS)
def test_stop_tokens_are_those_of_transformers_generate(
    top: object, text: object, generation: object
) -> None:
    """A number, a list, null or nothing, at any of the places; None here is no generation file."""
    file = None if generation is None else {"eos_token_id": generation}
    ours, stops = _stops({"eos_token_id": top, "text_config.eos_token_id": text}, file)
    assert ours == stops


def test_a_stop_token_at_the_top_level_alone_stops() -> None:
    """No generation file, and the token only at config.json's top level."""
    ours, stops = _stops({"eos_token_id": 7, "text_config.eos_token_id": ...}, None)
    assert ours == stops == {7}


def test_a_generation_file_that_names_no_stop_token_leaves_it_to_the_configuration() -> None:
    """transformers would run to the limit; null says that this is meant."""
    assert _stops({"eos_token_id": 7}, {"temperature": 1.0})[0] == {7}
    assert _stops({"text_config.eos_token_id": 8}, {})[0] == {8}
    assert _stops({"eos_token_id": 7}, {"eos_token_id": None}) == (set(), set())


@pytest.mark.parametrize("stop", [40, -1, True, 1.0, "7", [7, None], [[7]], {}, 10**30])
def test_a_stop_token_that_is_none_is_refused(stop: object, directory: Path) -> None:
    """Beyond the vocabulary it would never come, and an answer never end."""
    set_values(directory / GENERATION, {"eos_token_id": stop})
    line = refusal(directory)
    assert f"{GENERATION}: eos_token_id is" in line


# Frames.

FRAMES = preprocessing(16)
ATTRIBUTES = (
    "size",
    "resample",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


def _pixels_of_transformers(directory: Path, rgb: np.ndarray[Any, Any]) -> Any:
    """A frame as the processor of this model prepares a video's: without patches of its own."""
    found = theirs.LlavaOnevisionImageProcessorPil.from_pretrained(directory)
    processor = theirs.PilBackend(**{name: getattr(found, name) for name in ATTRIBUTES})
    return processor(rgb, return_tensors="np", input_data_format="channels_last").pixel_values[0]


@pytest.mark.parametrize("file", [IMAGES, VIDEO, PROCESSOR])
@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": ...},
        {"image_std": ...},
        {"rescale_factor": ...},
        {"do_normalize": False, "image_mean": None, "image_std": None},
        {"do_rescale": False, "rescale_factor": None},
        {"do_rescale": ..., "do_normalize": ..., "do_resize": ..., "resample": ...},
        {"do_normalize": False, "image_mean": ...},
        {"do_rescale": False},
        {"do_center_crop": False},
        {"do_center_crop": None},
        {"image_mean": 0.4, "image_std": 0.3},
        {"size": [16, 16]},
        {"size": 16, "default_to_square": True},
        {"video_processor_type": ..., "image_processor_type": "SiglipImageProcessor"},
        {"video_processor_type": ..., "image_processor_type": ...},
        {"do_sample_frames": True, "num_frames": 8, "do_pad": False},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_frames_are_prepared_as_transformers_prepares_them(
    changes: dict[str, object], file: str, directory: Path
) -> None:
    """A processor file that leaves values out: those of transformers' class stand for them."""
    fields = {n: v for n, v in (FRAMES | changes).items() if v is not ...}
    (directory / IMAGES).write_text(json.dumps(FRAMES | {"image_mean": [0.1, 0.2, 0.3]}))
    nested = {"video_processor": fields} if file == PROCESSOR else fields
    (directory / file).write_text(json.dumps(nested))
    alone = directory / "alone"
    alone.mkdir()
    (alone / IMAGES).write_text(json.dumps(fields))
    rgb = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    ours = Preprocessor(open_checkpoint(str(directory)).spec)(rgb)
    expected = _pixels_of_transformers(alone, rgb)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": ...}, "transformers' default"),
        ({"size": {"shortest_edge": 16}}, "resizes to {'shortest_edge': 16}"),
        ({"size": 16}, "resizes to 16"),
        ({"size": {"height": 16, "width": 16, "shortest_edge": 16}}, "resizes to"),
        ({"size": {"height": 16, "width": 24}}, "resizes to"),
        ({"size": "16"}, "resizes to '16'"),
        ({"size": {"height": True, "width": True}}, "resizes to"),
        ({"do_resize": False}, "do_resize is False"),
        ({"do_rescale": 0}, "do_rescale is 0, expected true or false"),
        ({"do_normalize": "no"}, "do_normalize is 'no'"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"resample": 2}, "resample is 2"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"resample": 3.0}, "resample is 3.0"),
        ({"image_mean": []}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_mean": ["0.5", 0.5, 0.5]}, "image_mean is ['0.5'"),
        *(
            ({name: None}, f"{name} is None")
            for name in (
                "do_resize",
                "do_rescale",
                "do_normalize",
                "resample",
                "image_mean",
                "image_std",
                "rescale_factor",
            )
        ),
        ({"size": None}, "resizes to None"),
        ({"image_std": 0}, "image_std"),
        ({"image_std": [0.5, -0.5, 0.5]}, "image_std"),
        ({"image_std": float("nan")}, "image_std"),
        ({"rescale_factor": True}, "rescale_factor"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"rescale_factor": 10**400}, "rescale_factor"),
        ({"video_processor_type": "Qwen2VLVideoProcessor"}, "Qwen2VLVideoProcessor"),
        (
            {"video_processor_type": ..., "image_processor_type": "Qwen2VLImageProcessor"},
            "Qwen2VLVideoProcessor",
        ),
        ({"video_processor_type": 7}, "video_processor_type is 7"),
    ],
)
def test_frames_that_would_be_prepared_otherwise_are_refused(
    changes: dict[str, object], told: str, directory: Path
) -> None:
    """Another size, crop, interpolation or class than the runtime's: the file and the value."""
    set_values(directory / IMAGES, changes)
    line = refusal(directory)
    assert told in line
    assert IMAGES in line


# The model.


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config.rope_parameters": ..., "text_config.rope_theta": 5e5},
        {"text_config.rope_parameters": ..., "text_config.rope_scaling": None},
        {"text_config.rope_parameters": {"rope_type": "default", "rope_theta": 3e4}},
        {"text_config.rope_parameters": {"rope_type": "default"}, "text_config.rope_theta": 7e3},
        {"text_config.rope_parameters": {"type": "default", "rope_theta": 9e3}},
        {
            "text_config.rope_parameters": ...,
            "text_config.rope_scaling": {"type": "default"},
            "text_config.rope_theta": 2e4,
        },
        {"text_config.head_dim": 10},
        {"text_config.num_key_value_heads": 1},
        {"text_config.sliding_window": 8, "text_config.use_sliding_window": False},
        {"text_config.layer_types": None},
        {"text_config.layer_types": ["full_attention"]},
        {"text_config.dtype": "bfloat16", "dtype": "float16"},
        {"torch_dtype": "float16", "dtype": ...},
        {"dtype": None},
        {"vision_feature_layer": [-1]},
        {"text_config.rms_norm_eps": 1e-3, "text_config.max_position_embeddings": 77},
        {"quantization_config": None, "text_config.quantization_config": None},
        {"compression_config": None},
        {"text_config.model_type": ...},
        {"vision_config.model_type": ...},
        {"num_labels": 10**9},
    ],
    ids=str,
)
def test_the_decoder_is_the_one_that_transformers_reads(
    changes: dict[str, object], directory: Path
) -> None:
    """Old and new keys of rotation, head width, windows and dtype; null stands for nothing."""
    set_values(directory / CONFIG, changes)
    spec = described_language(read_companions(directory))
    if "num_labels" in changes:  # transformers would make a table of them
        set_values(directory / CONFIG, {"num_labels": 2})
    text = AutoConfig.from_pretrained(directory).text_config
    rotary = LlavaOnevisionForConditionalGeneration(
        AutoConfig.from_pretrained(directory)
    ).model.language_model.rotary_emb
    half = torch.arange(0, spec.head_width, 2) / spec.head_width
    torch.testing.assert_close(rotary.inv_freq, spec.rotary_base**-half)
    assert rotary.attention_scaling == 1.0
    assert (spec.query_heads, spec.key_heads) == (2, text.num_key_value_heads)
    assert (spec.rms_norm_eps, spec.max_positions) == (
        text.rms_norm_eps,
        text.max_position_embeddings,
    )
    open_checkpoint(str(directory)).language()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        *(
            ({f"text_config.{key}": {"rope_type": kind, "type": kind, "factor": 2.0}}, kind)
            for key in ("rope_parameters", "rope_scaling")
            for kind in ("linear", "dynamic", "yarn", "mrope")
        ),
        ({"text_config.rope_parameters.partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"text_config.partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"text_config.use_sliding_window": True}, "use_sliding_window"),
        ({"text_config.layer_types": ["sliding_attention"]}, "sliding_attention"),
        ({"text_config.rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope type"),
        ({"text_config.hidden_act": "gelu"}, "hidden_act"),
        ({"text_config.model_type": "llama"}, "model_type"),
        ({"vision_config.hidden_act": "quick_gelu"}, "activation"),
        ({"projector_hidden_act": "silu"}, "activation"),
        ({"video_token_index": 40}, "video_token_index is 40"),
        ({"video_token_index": -1}, "video_token_index is -1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"text_config.torch_dtype": "float8_e4m3fn"}, "text_config.torch_dtype"),
        *(
            ({f"{part}{key}": {"quant_method": "fp8"}}, "quantised")
            for part in ("", "text_config.", "vision_config.")
            for key in ("quantization_config", "compression_config")
        ),
        ({"quantization_config": {}}, "quantised"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is"),
    ],
    ids=str,
)
def test_a_model_the_graphs_cannot_hold_is_refused_by_its_cause(
    changes: dict[str, object], told: str, directory: Path
) -> None:
    """Stretched rotations, windows, other activations, quantised weights: never a wrong export."""
    set_values(directory / CONFIG, changes)
    line = refusal(directory)
    assert told in line
    assert CONFIG in line


@settings(max_examples=25, deadline=None)
@given(
    top=st.sampled_from([..., True, False]),
    text=st.sampled_from([..., True, False]),
)
def test_the_configuration_ties_the_head_as_transformers_reads_it(
    top: object, text: object
) -> None:
    """Either place, both, in conflict or none."""
    with TemporaryDirectory() as folder:
        directory = write_tiny(Path(folder))
        places = {"tie_word_embeddings": top, "text_config.tie_word_embeddings": text}
        set_values(directory / CONFIG, places)
        tied = AutoConfig.from_pretrained(directory).tie_word_embeddings
        assert described_language(read_companions(directory)).tied_head == tied


def test_float16_weights_and_settings_are_read_as_stored(directory: Path) -> None:
    """`dtype` says how transformers would hold weights; it changes none that is exported."""
    set_values(directory / CONFIG, {"dtype": "float16", "text_config.dtype": "float16"})
    name = "encoder.layers.0.mlp.fc1.weight"
    state = read_by_transformers(directory).state_dict()
    ours = open_checkpoint(str(directory)).vision(name)
    assert torch.equal(ours, state[f"model.vision_tower.{name}"])


def test_a_broken_setting_is_one_error_of_the_checkpoint(directory: Path) -> None:
    """Whatever transformers raises inside, the file is named."""
    set_values(directory / CONFIG, {"text_config.attention_dropout": "much"})
    with pytest.raises(CheckpointError, match=CONFIG):
        open_checkpoint(str(directory))
