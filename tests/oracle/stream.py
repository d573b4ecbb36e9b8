"""Frames through the numpy oracle by a schedule of its own, which programs are compared with.

What a stream remembers is `References`, handed in and handed out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.settings import Selection
from tests.oracle import vision as oracle
from tests.oracle.layers import TowerWeights

Array = NDArray[Any]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class BlockReference:
    """One block's part of a reference frame: key, value and residual, each [T, C].

    The residual is attention output plus MLP output.
    """

    key: Array
    value: Array
    residual: Array


References = tuple[BlockReference, ...]
"""A reference frame as later frames see it, one entry per block."""


@dataclass(frozen=True)
class ForwardResult:
    """A frame's way through the tower.

    hidden_states: [T, C] after the embedding and after every block, L + 1 in all.
    indices: per block the tokens recomputed, ascending; all T on a reference frame.
    references: for the next frames; on a reuse frame the very ones handed in.
    """

    hidden_states: tuple[Array, ...]
    indices: tuple[Indices, ...]
    references: References


def forward(
    weights: TowerWeights,
    pixel_values: Array,
    references: References | None = None,
    *,
    count: int | None = None,
    selection: Selection = "layerwise",
) -> ForwardResult:
    """The frame `pixel_values` [3, Hpx, Wpx] has passed all blocks.

    Without `references` it is a reference frame: all tokens are computed. With them it is a reuse
    frame: every block recomputes its own `count` = M tokens (`layerwise`), or all blocks
    recompute those that block 0 selects (`shared`). None recomputes all T.
    """
    hidden = oracle.embed(weights.embed, pixel_values)
    everything = np.arange(len(hidden), dtype=np.int64)
    hidden_states = [hidden]
    chosen: list[Indices] = []
    fresh: list[BlockReference] = []
    for number, block in enumerate(weights.blocks):
        if references is None or count is None:
            key, value, attention = oracle.reference(block, hidden)
            residual, indices = oracle.mlp(block, hidden, attention), everything
            hidden = hidden + residual
            fresh.append(BlockReference(key, value, residual))
        else:
            old, key = references[number], oracle.keys(block, hidden)
            score = oracle.compare(key, old.key, block.prefix_tokens)
            indices = chosen[0] if selection == "shared" and chosen else oracle.select(score, count)
            rows = hidden[indices]
            value, residual = old.value.copy(), old.residual.copy()
            value[indices] = block.value(block.norm1(rows))
            attention = oracle.attention(block, rows, key, value)
            residual[indices] = oracle.mlp(block, rows, attention)
            hidden = hidden + residual
        hidden_states.append(hidden)
        chosen.append(indices)
    return ForwardResult(
        tuple(hidden_states), tuple(chosen), tuple(fresh) if references is None else references
    )
