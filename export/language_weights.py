"""A decoder's tensors by canonical name, read on demand.

Names are canonical: below the decoder (`layers.0.self_attn.q_proj.weight`, `norm.weight`). The
two tables of V rows, EMBED and HEAD, can be gigabytes: they are read a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stc.errors import CheckpointError
from stc.export.checkpoint_file import FETCH
from stc.export.language_spec import read_language_spec
from stc.export.shards import Shards
from stc.export.tensor_shapes import Shapes, language_shapes
from stc.manifest import LanguageSpec

EMBED = "embed_tokens.weight"
HEAD = "lm_head.weight"
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.")
"""What precedes the canonical names on disk: as transformers saves, then a saved state dict."""
HEAD_PREFIXES = ("language_model.", "")

ROWS = 8192
"""Rows of a table read at once."""


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
    """The decoder of a checkpoint whose tensors were found whole; satisfies LanguageWeights."""

    spec: LanguageSpec
    shards: Shards
    prefix: str
    head: str

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` below the decoder.

        Raises CheckpointError when it is missing, quantised or not finite.
        """
        return self.shards.load(self.prefix + name)

    def table(self, name: str) -> Iterator[Tensor]:
        """EMBED or HEAD in slices; raises as `tensor` does."""
        full = self.head if name == HEAD and not self.spec.tied_head else self.prefix + EMBED
        for start in range(0, self.spec.vocabulary, ROWS):
            yield self.shards.rows(full, start, min(start + ROWS, self.spec.vocabulary))


def checkpoint_language(directory: Path, shards: Shards) -> CheckpointLanguage:
    """The decoder of the checkpoint in `directory`, the shape of every tensor compared with what
    the configuration asks for; no tensor is read.

    Raises CheckpointError otherwise.
    """
    spec = read_language_spec(directory)
    prefix = _prefix(shards, PREFIXES, EMBED)
    head = _prefix(shards, HEAD_PREFIXES, HEAD) + HEAD
    table = (spec.vocabulary, spec.width)
    expected: Shapes = {prefix + EMBED: table}
    if not spec.tied_head:
        expected[head] = table
    expected |= {prefix + name: shape for name, shape in language_shapes(spec).items()}
    for name, shape in expected.items():
        stored = shards.find(name)
        if stored.shape != shape:
            got = f"shape {list(stored.shape)}"
            mend = f"{list(shape)} by config.json"
            raise CheckpointError(f"{stored.file}: {name}", got, mend, FETCH)
    return CheckpointLanguage(spec, shards, prefix, head)


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
