"""The decoder geometry a checkpoint's JSON files describe.

Reads what transformers 4.x and 5.x write; values a file leaves out are transformers' own
defaults. Knows nothing of weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stc.errors import CheckpointError
from stc.export.checkpoint_file import FETCH, read_object
from stc.export.vision_spec import CONFIG, OTHER_MODEL, Described, parse_config
from stc.manifest import LanguageSpec

GENERATION = "generation_config.json"
DECODER_TYPE = "qwen2"
ACTIVATION = "silu"
ROTARY_TYPE = "default"


def read_language_spec(directory: Path) -> LanguageSpec:
    """The decoder of the checkpoint in `directory`.

    Raises CheckpointError when its files are missing, damaged, or describe a decoder this export
    cannot represent.
    """
    generation = directory / GENERATION
    found = read_object(generation) if generation.exists() else {}
    config = directory / CONFIG
    return language_spec(Described(config, read_object(config)), Described(generation, found))


def language_spec(config: Described, generation: Described) -> LanguageSpec:
    """The spec of the object in config.json and of the one in generation_config.json.

    Raises CheckpointError about either.
    """
    parsed = parse_config(config)
    text = parsed.text_config
    _require(config, "text_config.model_type", text.model_type, DECODER_TYPE)
    _require(config, "text_config.hidden_act", text.hidden_act, ACTIVATION)
    _require(config, "text_config.use_sliding_window", text.use_sliding_window, False)
    rotary = text.rope_parameters
    _require(config, "text_config's rope type", rotary.get("rope_type"), ROTARY_TYPE)
    stop = generation.fields.get("eos_token_id", text.eos_token_id)
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
            most_positions=text.max_position_embeddings,
            rotary_base=rotary["rope_theta"],
            rms_norm_eps=text.rms_norm_eps,
            activation=text.hidden_act,
            tied_head=parsed.tie_word_embeddings,
            video_token_id=parsed.video_token_index,
            stop_token_ids=_stop_token_ids(stop),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        blamed = generation if field.startswith("stop") else config
        got = f"{field} is {first['input']!r}: {first['msg']}"
        raise CheckpointError(blamed.subject, got, mend=FETCH) from error


def _stop_token_ids(stop: Any) -> Any:
    if stop is None:
        return ()
    return tuple(stop) if isinstance(stop, list) else (stop,)


def _require(config: Described, name: str, got: object, expected: object) -> None:
    if got != expected:
        raise CheckpointError(config.subject, f"{name} is {got!r}", repr(expected), OTHER_MODEL)
