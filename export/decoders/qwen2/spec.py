"""The decoder geometry a checkpoint's JSON files describe.

Reads what transformers 4.x and 5.x write; values a file leaves out are transformers' own
defaults. Knows nothing of weights.
"""

from __future__ import annotations

from reprlib import repr as short
from typing import Any

from pydantic import ValidationError

from stc.errors import CheckpointError
from stc.export.companions import (
    CONFIG,
    FETCH,
    GENERATION,
    OTHER_MODEL,
    Companions,
    Described,
)
from stc.export.models.llava_onevision import parse_config
from stc.manifest import LanguageSpec

DECODER_TYPE = "qwen2"
ACTIVATION = "silu"
ROTARY_TYPE = "default"
ATTENTION = "full_attention"


def described_language(companions: Companions) -> LanguageSpec:
    """The decoder that `companions` describe.

    Raises CheckpointError when they are missing, or describe one that cannot be exported.
    """
    generation = Described(companions.directory / GENERATION, {})
    if GENERATION in companions:
        generation = companions.described(GENERATION)
    return language_spec(companions.described(CONFIG), generation)


def language_spec(config: Described, generation: Described) -> LanguageSpec:
    """The spec of the object in config.json and of the one in generation_config.json.

    Raises CheckpointError about either.
    """
    parsed = parse_config(config)
    text = parsed.text_config
    _require(config, "text_config.model_type", text.model_type, DECODER_TYPE)
    _require(config, "text_config.hidden_act", text.hidden_act, ACTIVATION)
    _require(config, "text_config.use_sliding_window", text.use_sliding_window, False)
    kinds = sorted(set(map(str, text.layer_types)))
    _require(config, "text_config.layer_types", kinds, [ATTENTION])
    rotary = text.rope_parameters
    if any(isinstance(value, dict) for value in rotary.values()):
        kinds_of = ", ".join(map(str, rotary))
        got = f"text_config's rope type differs between kinds of layers ({kinds_of})"
        raise CheckpointError(config.subject, got, ROTARY_TYPE, OTHER_MODEL)
    _require(config, "text_config's rope type", rotary.get("rope_type"), ROTARY_TYPE)
    turned = rotary.get("partial_rotary_factor", 1.0)
    _require(config, "text_config's partial_rotary_factor", turned, 1.0)
    _check_token(config.subject, "video_token_index", parsed.video_token_index, text.vocab_size)
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if text.num_attention_heads % text.num_key_value_heads or head_width % 2:
        got = (
            f"{text.num_attention_heads} query heads, {text.num_key_value_heads} key heads of "
            f"width {head_width}"
        )
        raise CheckpointError(config.subject, got, "whole groups of an even width", FETCH)
    try:
        return LanguageSpec(
            width=text.hidden_size,
            blocks=text.num_hidden_layers,
            query_heads=text.num_attention_heads,
            key_heads=text.num_key_value_heads,
            head_width=head_width,
            mlp_width=text.intermediate_size,
            vocabulary=text.vocab_size,
            max_positions=text.max_position_embeddings,
            rotary_base=rotary["rope_theta"],
            rms_norm_eps=text.rms_norm_eps,
            activation=text.hidden_act,
            tied_head=parsed.tie_word_embeddings,
            video_token_id=parsed.video_token_index,
            stop_token_ids=_stop_token_ids(config, generation, text.vocab_size),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        got = f"{field} is {short(first['input'])}: {first['msg']}"
        raise CheckpointError(config.subject, got, fix=FETCH) from error


def _stop_token_ids(config: Described, generation: Described, vocabulary: int) -> tuple[int, ...]:
    """The tokens that end an answer: of the first place that names any.

    transformers asks generation_config.json, and config.json's top level and then its text_config
    where that file is missing. Where it is there and silent, transformers never stops; what
    config.json says stands here all the same. An explicit null is no stop token.
    """
    text = config.fields.get("text_config") or {}
    place, stop = generation.subject, generation.fields.get("eos_token_id")
    if "eos_token_id" not in generation.fields:
        place, stop = config.subject, config.fields.get("eos_token_id")
        if stop is None:
            stop = text.get("eos_token_id")
    if stop is None:
        return ()
    tokens = stop if isinstance(stop, list) else [stop]
    for token in tokens:
        _check_token(place, "eos_token_id", token, vocabulary)
    return tuple(dict.fromkeys(tokens))


def _check_token(subject: object, name: str, token: Any, vocabulary: int) -> None:
    if type(token) is not int or not 0 <= token < vocabulary:
        got = f"{name} is {short(token)}"
        expected = f"ids of the vocabulary's {vocabulary} tokens"
        raise CheckpointError(subject, got, expected, FETCH)


def _require(config: Described, name: str, got: object, expected: object) -> None:
    if got != expected:
        raise CheckpointError(
            config.subject, f"{name} is {short(got)}", repr(expected), OTHER_MODEL
        )
