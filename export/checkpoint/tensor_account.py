"""Every tensor a checkpoint stores, accounted for: read, known to play no part, or refused.

A tensor that is left over is the trace of something the export would silently do without: an
adapter that was not merged, scales of quantised weights, blocks the configuration does not count.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from stc.errors import CheckpointError
from stc.export.checkpoint.config_values import NOT_QUANTISED
from stc.export.checkpoint.json_object import FETCH
from stc.export.checkpoint.shards import Shards

MERGE = (
    "merge the adapter first: PeftModel.from_pretrained(MODEL, ADAPTER_DIR).merge_and_unload()"
    ".save_pretrained(NEW_DIR)"
)
UNWRAP = (
    "save the model inside the wrapper, as accelerator.unwrap_model gives it, or rename the tensors"
)
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model*",
    "adapters.safetensors",
    "adapters.npz",
    "*lora*.safetensors",
    "*lora*.bin",
)
"""Beside a model, or in a folder of it; some of them transformers would load over its weights."""

SIGNS = (
    (
        re.compile(
            r"(^|\.)(base_layer|base_model|lora_\w+|ia3_\w+|modules_to_save|original_module"
            r"|prompt_encoder|prompt_embeddings|hada_w\w+|lokr_\w+|oft_\w+|boft_\w+|vera_lambda\w*"
            r"|ranknum|trainable_tokens\w*|token_adapter|adaption_\w+|randlora_\w+|c3a_\w+)(\.|$)"
        ),
        "of an adapter that is not merged",
        MERGE,
    ),
    (
        re.compile(
            r"(^|\.)(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
            r"|_fpw_module|_forward_module|_flat_param\w*)(\.|$)"
        ),
        "saved with a wrapper of training round the model",
        UNWRAP,
    ),
    (
        re.compile(
            r"\.(\w*weight_scales?\w*|(in|out)put_scale\w*|[kqv]_scale|q?scales|q?zeros|qweight"
            r"|\w*zero_points?|g_idx|\w*absmax|\w*quant_map|quant_state\w*(\.\w+)?|SCB|weight_format"
            r"|\w+_packed|weight_shape|weight_bits|codebooks|codes|W_q|q_perm|q_invperm|q_scale\w*"
            r"|q_group\w*|amax)$"
        ),
        "of quantised weights",
        NOT_QUANTISED,
    ),
)
"""A pattern of names, what a tensor of such a name is, and the fix."""

NEWLINE = re.compile(r"(model\.)?image_newline")
"""Between the rows of single images; a video's tokens have none."""
TOWER_UNUSED = re.compile(
    r"post_layernorm\.(weight|bias)|embeddings\.position_ids"
    r"|head\.(probe|attention\.(in_proj_weight|in_proj_bias|out_proj\.(weight|bias))"
    r"|layernorm\.(weight|bias)|mlp\.fc[12]\.(weight|bias))"
)
"""Behind the features LLaVA-OneVision takes, and a buffer of old."""
DECODER_UNUSED = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
"""A buffer of old: its values follow from the configuration."""


def check_no_adapter(directory: Path) -> None:
    """No adapter lies in `directory`, beside a model or alone; raises CheckpointError otherwise."""
    for name in ADAPTER_FILES:
        found = sorted([*directory.glob(name), *directory.glob(f"*/{name}")])
        if found:
            alone = not any(directory.glob("model*.safetensors"))
            got = "an adapter alone, without its model" if alone else "an adapter beside the model"
            raise CheckpointError(found[0], got, "one model's weights", MERGE)


def check_signs(shards: Shards) -> None:
    """No name of a tensor shows an adapter, a wrapper or quantised weights.

    Raises CheckpointError, which names the first and says what it is, otherwise.
    """
    for pattern, cause, fix in SIGNS:
        _refuse(shards, filter(pattern.search, shards.tensors), cause, "the model's alone", fix)


def check_left_over(
    shards: Shards, within: Iterable[str], used: Collection[str], expected: str
) -> None:
    """Every tensor of `within` is one of `used`.

    Raises CheckpointError, which names the first that is not, otherwise; `expected` says which
    tensors the configuration has.
    """
    left = [name for name in within if name not in used]
    fix = (
        f"{FETCH}; or let transformers drop it, if it may: LlavaOnevisionForConditionalGeneration"
        ".from_pretrained(DIR).save_pretrained(NEW_DIR)"
    )
    _refuse(shards, left, "no part of the model that config.json describes", expected, fix)


def _refuse(shards: Shards, names: Iterable[str], cause: str, expected: str, fix: str) -> None:
    found = sorted(names)
    if found:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        subject = f"{shards.tensors[found[0]].file}: {found[0]}{more}"
        raise CheckpointError(subject, cause, expected, fix)
