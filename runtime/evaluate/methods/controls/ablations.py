"""STC-Cacher with one half of it: reuse of attention's output alone, or of the MLP's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stc.method.cost import attention_macs, embed_macs, key_macs, mlp_macs
from stc.method.graphs import ALWAYS
from stc.runtime.evaluate.method import Encoded, Pixels, Runtime, Towers
from stc.runtime.evaluate.methods.cacher_like import CacherLike
from stc.runtime.evaluate.methods.pruning import directions, lowest
from stc.runtime.evaluate.methods.stc_methods import PAPER
from stc.settings import Settings

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class HalfCacher(CacherLike):
    """As preset `cacher`, but a reuse frame takes one of a block's two outputs alone from the
    reference, and computes the other for every token.

    Tokens are selected by their keys in every block, as STC-Cacher does. The paper reports that
    reuse of attention's output alone loses most of the accuracy, and reuse of the MLP's little.
    """

    source: str = PAPER
    runtime: ClassVar[Runtime] = "PyTorch"
    reuses_attention: ClassVar[bool]
    """Attention's output; otherwise the MLP's."""

    def open(self, towers: Towers) -> ReuseEncoder:
        attention = self.reuses_attention
        return ReuseEncoder(towers.torch, self.cacher(), attention=attention, mlp=not attention)


@dataclass(frozen=True, kw_only=True)
class AttentionOnly(HalfCacher):
    """Reuses attention's output; the MLP is computed for every token."""

    name: str = "attention-only"
    about: str = "STC-Cacher that reuses attention's output alone"
    reuses_attention: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class MlpOnly(HalfCacher):
    """Reuses the MLP's output; attention is computed for every token."""

    name: str = "mlp-only"
    about: str = "STC-Cacher that reuses the MLP's output alone"
    reuses_attention: ClassVar[bool] = False


class BlockOutputs(NamedTuple):
    """What a reference frame leaves of one block: key [H, T, d]; value, attention and mlp [T, C],
    the last two being what each half added."""

    key: Array
    value: Array
    attention: Array
    mlp: Array


class ReuseEncoder:
    """Frames through a tower in PyTorch that reuse attention's output, the MLP's, or both.

    With both it computes what STC-Cacher does.
    """

    def __init__(
        self, torch: TorchVision, settings: Settings, *, attention: bool, mlp: bool
    ) -> None:
        self._torch, self._settings = torch, settings
        self._attention, self._mlp = attention, mlp
        self._references: list[BlockOutputs] = []
        self._index = 0

    def push(self, pixels: Pixels) -> Encoded:
        reference = self._settings.is_reference(self._index)
        self._index += 1
        steps, recomputed = self._torch.steps, None
        hidden = steps.embed(pixels)
        outputs = []
        for block in range(self._torch.spec.blocks):
            normed = steps.normed(block, hidden)
            key = steps.key(block, normed)
            old = None if reference else self._references[block]
            rows = None if old is None else self._selected(key, old.key)
            outputs.append(self._computed(block, hidden, normed, key, old, rows))
            hidden = hidden + outputs[-1].attention + outputs[-1].mlp
            recomputed = rows if block == 0 else recomputed
        if reference:
            self._references = outputs
        whole = self._torch.project(hidden)
        everything = np.arange(len(whole), dtype=np.int64)
        return Encoded(whole, everything, whole, recomputed, self.macs(reference))

    def macs(self, reference: bool) -> int:
        """Of a reference frame, or of a reuse frame."""
        spec = self._torch.spec
        count = spec.tokens if reference else self._settings.recomputed(spec.tokens)
        attending = count if self._attention else spec.tokens
        through = count if self._mlp else spec.tokens
        block = key_macs(spec, spec.tokens) + attention_macs(spec, attending, spec.tokens)
        return embed_macs(spec) + spec.blocks * (block + mlp_macs(spec, through))

    def _selected(self, key: Array, ref_key: Array) -> Rows:
        """The tokens whose keys [H, T, d] changed most, prefix tokens before all; ascending."""
        spec = self._torch.spec
        score = (directions(_rows(key)) * directions(_rows(ref_key))).sum(axis=1)
        score[: spec.grid.prefix_tokens] = ALWAYS
        return lowest(score, self._settings.recomputed(spec.tokens))

    def _computed(
        self,
        block: int,
        hidden: Array,
        normed: Array,
        key: Array,
        old: BlockOutputs | None,
        rows: Rows | None,
    ) -> BlockOutputs:
        """The block's outputs; of a half that is reused `rows` alone are computed."""
        steps, heads = self._torch.steps, key.shape
        attending, through = rows if self._attention else None, rows if self._mlp else None
        value = _renewed(
            None if old is None else old.value,
            attending,
            lambda some: _rows(steps.value(block, some)),
            normed,
        )
        by_head = value.reshape(heads[1], heads[0], heads[2]).transpose(1, 0, 2)
        attention = _renewed(
            None if old is None else old.attention,
            attending,
            lambda some: steps.attention(block, some, key, by_head),
            normed,
        )
        mlp = _renewed(
            None if old is None else old.mlp,
            through,
            lambda some: steps.mlp(block, some),
            hidden + attention,
        )
        return BlockOutputs(key, value, attention, mlp)


def _renewed(
    old: Array | None, rows: Rows | None, compute: Callable[[Array], Array], given: Array
) -> Array:
    """What `compute` makes of all of `given` [T, C], or `old` with that of `rows` put in."""
    if old is None or rows is None:
        return compute(given)
    fresh: Array = old.copy()
    fresh[rows] = compute(given[rows])
    return fresh


def _rows(heads: Array) -> Array:
    """[H, tokens, d] -> [tokens, C]."""
    rows: Array = heads.transpose(1, 0, 2).reshape(heads.shape[1], -1)
    return rows
