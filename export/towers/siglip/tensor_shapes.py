"""The tensors of a vision tower, its projector and a decoder: Hugging Face names and shapes.

Names are canonical: below the vision model (`encoder.layers.0...`), below the projector
(`linear_1.weight`) and below the decoder (`layers.0...`), without the prefixes that differ between
transformers' versions.
"""

from __future__ import annotations

from stc.manifest import LanguageSpec, VisionSpec

Shapes = dict[str, tuple[int, ...]]


def vision_shapes(spec: VisionSpec) -> Shapes:
    """Every tensor of the embedding and of the L blocks that run.

    The head and the norm behind the last block are not among them: LLaVA-OneVision takes its
    features before that norm.
    """
    width, patch = spec.width, spec.patch_size
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding.weight": (spec.tokens, width),
    }
    for block in range(spec.blocks):
        prefix = f"encoder.layers.{block}"
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}.{norm}.weight"] = (width,)
            shapes[f"{prefix}.{norm}.bias"] = (width,)
        for linear in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{prefix}.self_attn.{linear}", width, width)
        shapes |= _linear(f"{prefix}.mlp.fc1", width, spec.mlp_width)
        shapes |= _linear(f"{prefix}.mlp.fc2", spec.mlp_width, width)
    return shapes


def projector_shapes(spec: VisionSpec) -> Shapes:
    """Every tensor of the projector."""
    language, bias = spec.language_width, spec.projector_bias
    return _linear("linear_1", spec.width, language, bias=bias) | _linear(
        "linear_2", language, language, bias=bias
    )


def language_shapes(spec: LanguageSpec) -> Shapes:
    """Every tensor of the decoder but its two tables of V rows, embedding and head."""
    query, key = spec.query_heads * spec.head_width, spec.key_heads * spec.head_width
    shapes: Shapes = {}
    for block in range(spec.blocks):
        prefix = f"layers.{block}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (spec.width,)
        for linear, width in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            shapes |= _linear(f"{prefix}.self_attn.{linear}", spec.width, width)
        shapes |= _linear(f"{prefix}.self_attn.o_proj", query, spec.width, bias=False)
        for linear in ("gate_proj", "up_proj"):
            shapes |= _linear(f"{prefix}.mlp.{linear}", spec.width, spec.mlp_width, bias=False)
        shapes |= _linear(f"{prefix}.mlp.down_proj", spec.mlp_width, spec.width, bias=False)
    return shapes | {"norm.weight": (spec.width,)}


def _linear(name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (fan_out, fan_in)}
    if bias:
        shapes[f"{name}.bias"] = (fan_out,)
    return shapes
