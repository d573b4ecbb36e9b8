"""A checkpoint's decoder as the modules of `stc.export.decoders.qwen2.modules`, one at a time.

Says which Hugging Face tensor fills which parameter; the same names are the keys under which
tensors are stored once in the bundle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stc.export.decoders.qwen2.modules import Attend, QueryKeyValue, RmsNorm
from stc.export.decoders.qwen2.weights import LanguageWeights
from stc.export.layers import fill

NORM = "norm.weight"


@dataclass(frozen=True)
class Decoder:
    """Makes the filled modules of a decoder; holds no weights itself."""

    weights: LanguageWeights
    dtype: torch.dtype = torch.float32

    def qkv(self, block: int) -> QueryKeyValue:
        """Block `block`'s query, key and value."""
        module = QueryKeyValue(self.weights.spec, self.dtype)
        return fill(module, qkv_tensors(block), self.weights.tensor)

    def attend(self, block: int) -> Attend:
        """Block `block`'s attention and MLP."""
        module = Attend(self.weights.spec, self.dtype)
        return fill(module, attend_tensors(block), self.weights.tensor)

    def norm(self) -> RmsNorm:
        """The norm before the head."""
        spec = self.weights.spec
        return fill(RmsNorm(spec.width, spec.rms_norm_eps), {"weight": NORM}, self.weights.tensor)


def qkv_tensors(block: int) -> dict[str, str]:
    """Hugging Face name of every parameter of block `block`'s qkv graph."""
    names = {"norm1.weight": f"layers.{block}.input_layernorm.weight"}
    for ours in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = f"layers.{block}.self_attn.{ours[0]}_proj.{kind}"
    return names


def attend_tensors(block: int) -> dict[str, str]:
    """Hugging Face name of every parameter of block `block`'s attend graph."""
    prefix = f"layers.{block}"
    return {
        "out.weight": f"{prefix}.self_attn.o_proj.weight",
        "norm2.weight": f"{prefix}.post_attention_layernorm.weight",
        **{f"{ours}.weight": f"{prefix}.mlp.{ours}_proj.weight" for ours in ("gate", "up", "down")},
    }
