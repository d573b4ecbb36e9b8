"""A decoder's tensors by canonical name, read on demand.

Names are canonical: below the decoder (`layers.0.self_attn.q_proj.weight`, `norm.weight`). The
two tables of V rows, EMBED and HEAD, can be gigabytes: they are read a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stc.errors import CheckpointError
from stc.export.checkpoint.shards import DECODER_UNUSED, Shards, check_left_over
from stc.export.companions import FETCH
from stc.export.layers import Shapes, linear_shapes
from stc.manifest import LanguageSpec

EMBED = "embed_tokens.weight"
HEAD = "lm_head.weight"
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.")
"""What precedes the canonical names on disk: as transformers saves, then a saved state dict."""
HEAD_PREFIXES = ("language_model.", "")
PARTS = ("language_model.", "model.language_model.", "lm_head.", "model.lm_head.")
"""What the names of all a decoder's tensors start with, in every layout."""

FIRST = "norm.weight"
"""A tensor that every decoder stores; a tied embedding may lie under the head's name alone."""

ROWS = 8192
"""Rows of a table read at once."""


def language_shapes(spec: LanguageSpec) -> Shapes:
    """Every tensor of the decoder but its two tables of V rows, embedding and head."""
    query, key = spec.query_heads * spec.head_width, spec.key_heads * spec.head_width
    shapes: Shapes = {}
    for block in range(spec.blocks):
        prefix = f"layers.{block}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = (spec.width,)
        for linear, width in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            shapes |= linear_shapes(f"{prefix}.self_attn.{linear}", spec.width, width)
        shapes |= linear_shapes(f"{prefix}.self_attn.o_proj", query, spec.width, bias=False)
        for linear in ("gate_proj", "up_proj"):
            shapes |= linear_shapes(
                f"{prefix}.mlp.{linear}", spec.width, spec.mlp_width, bias=False
            )
        shapes |= linear_shapes(f"{prefix}.mlp.down_proj", spec.mlp_width, spec.width, bias=False)
    return shapes | {"norm.weight": (spec.width,)}


class LanguageWeights(Protocol):
    """What the export of a decoder reads."""

    @property
    def spec(self) -> LanguageSpec:
        """The geometry; with a tied head HEAD is EMBED."""

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` below the decoder, as float32 and finite."""

    def table(self, name: str) -> Iterator[Tensor]:
        """EMBED or HEAD, [V, D], in slices of ROWS rows, as float32 and finite."""


@dataclass(frozen=True)
class CheckpointLanguage:
    """The decoder of a checkpoint whose tensors were found whole; satisfies LanguageWeights.

    `embed` and `head` are the full names of the two tables, the same where one is both.
    """

    spec: LanguageSpec
    shards: Shards
    prefix: str
    embed: str
    head: str

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` below the decoder.

        Raises CheckpointError when it is missing, quantised or not finite.
        """
        return self.shards.load(self.prefix + name)

    def table(self, name: str) -> Iterator[Tensor]:
        """EMBED or HEAD in slices; raises as `tensor` does."""
        yield from _slices(self.shards, self.head if name == HEAD else self.embed, self.spec)


def checkpoint_language(spec: LanguageSpec, shards: Shards) -> CheckpointLanguage:
    """The decoder `spec` that configuration files describe, among `shards`.

    The shape of every tensor has been compared with what `spec` asks for, and none below the
    decoder is left over. The head is what transformers takes: where the configuration says that
    embedding and head are one table, a stored head of other values is a head of its own, and the
    `spec` of the result says so; a head without an embedding is both.

    Raises CheckpointError otherwise.
    """
    prefix = _prefix(shards, PREFIXES, FIRST)
    embed = prefix + EMBED
    head = _prefix(shards, HEAD_PREFIXES, HEAD) + HEAD
    if spec.tied_head:
        tables = [name for name in (embed, head) if name in shards.tensors] or [embed]
        embed, head = tables[0], tables[-1]
    table = (spec.vocabulary, spec.width)
    expected: Shapes = {embed: table, head: table}
    expected |= {prefix + name: shape for name, shape in language_shapes(spec).items()}
    for name, shape in expected.items():
        stored = shards.find(name)
        if stored.shape != shape:
            got = f"shape {list(stored.shape)}"
            wanted = f"{list(shape)} by config.json"
            raise CheckpointError(f"{stored.file}: {name}", got, wanted, FETCH)
    unused = {
        name
        for name in shards.tensors
        if name.startswith(prefix) and DECODER_UNUSED.fullmatch(name, len(prefix))
    }
    within = [name for name in shards.tensors if name.startswith(PARTS)]
    blocks = f"the tensors of {spec.blocks} blocks of the decoder"
    check_left_over(shards, within, expected.keys() | unused, blocks)
    if spec.tied_head and embed != head:
        pairs = zip(_slices(shards, embed, spec), _slices(shards, head, spec), strict=True)
        spec = spec.model_copy(update={"tied_head": all(torch.equal(*pair) for pair in pairs)})
    return CheckpointLanguage(spec, shards, prefix, embed, head)


def _slices(shards: Shards, name: str, spec: LanguageSpec) -> Iterator[Tensor]:
    for start in range(0, spec.vocabulary, ROWS):
        yield shards.rows(name, start, min(start + ROWS, spec.vocabulary))


def whole_table(weights: LanguageWeights, name: str) -> Tensor:
    """EMBED or HEAD at once, float32 [V, D]."""
    whole = torch.empty(weights.spec.vocabulary, weights.spec.width)
    start = 0
    for part in weights.table(name):
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def _prefix(shards: Shards, prefixes: tuple[str, ...], name: str) -> str:
    # Without any match the first prefix stands, and its missing tensor is what the error names.
    return next((prefix for prefix in prefixes if prefix + name in shards.tensors), prefixes[0])
