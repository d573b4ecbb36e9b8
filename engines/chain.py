"""The whole tower on two backends, each on its own outputs: what adds up over the blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import (
    HIDDEN,
    HIDDEN_OUT,
    INDICES,
    KEY,
    PIXEL_VALUES,
    REF_KEY,
    REF_RESIDUAL,
    REF_VALUE,
    RESIDUAL,
    SCORE,
    TOKENS,
    VALUE,
)
from stc.engines.both import Both
from stc.engines.comparison import made_up_frames
from stc.engines.engine import Backend, Engine
from stc.engines.likeness import lowest_cosine
from stc.manifest import Manifest

Load = Callable[[str], Engine]


def chain_cosine(both: Both, recomputed: int) -> float:
    """The lowest cosine of a token after the projector, of a reference frame and a reuse frame.

    The reuse frame recomputes M = `recomputed` tokens in every block, those that the reference
    backend selects in block 0: choices that differ by a tie would be compared otherwise.
    """
    expected, chosen = _frames(both.reference, both.reference.load, both.manifest, recomputed, None)
    got, _ = _frames(
        both.candidate, lambda graph: both.engine(graph)[1], both.manifest, recomputed, chosen
    )
    return min(map(lowest_cosine, expected, got))


def _frames(
    backend: Backend,
    load: Load,
    manifest: Manifest,
    recomputed: int,
    chosen: NDArray[np.int64] | None,
) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """The tokens of both frames, and what the second recomputed."""
    spec = manifest.vision
    dtype = manifest.graphs[contracts.EMBED].inputs[0].dtype
    heads = np.ones((spec.heads, spec.tokens, spec.head_width), dtype)
    blank_heads = backend.to_device(heads)
    blank_rows = backend.to_device(np.zeros((spec.tokens, spec.width), dtype))
    everything = backend.to_device(np.arange(spec.tokens, dtype=np.int64))
    embed = load(contracts.EMBED)
    pixels = [backend.to_device(one.astype(dtype)) for one in made_up_frames(manifest)]
    first, second = (embed({PIXEL_VALUES: one})[HIDDEN] for one in pixels)
    for block in range(spec.blocks):
        keys, update = load(contracts.keys_graph(block)), load(contracts.update_graph(block))
        fresh = keys({HIDDEN: first, REF_KEY: blank_heads})[KEY]
        scored = keys({HIDDEN: second, REF_KEY: fresh})
        if chosen is None:
            score = backend.to_host(scored[SCORE])
            chosen = np.sort(np.argsort(score, kind="stable")[:recomputed])
        full = update(
            {
                HIDDEN: first,
                KEY: fresh,
                REF_VALUE: blank_heads,
                REF_RESIDUAL: blank_rows,
                INDICES: everything,
            }
        )
        part = update(
            {
                HIDDEN: second,
                KEY: scored[KEY],
                REF_VALUE: full[VALUE],
                REF_RESIDUAL: full[RESIDUAL],
                INDICES: backend.to_device(chosen),
            }
        )
        first, second = full[HIDDEN_OUT], part[HIDDEN_OUT]
    assert chosen is not None
    project = load(contracts.PROJECT)
    return [backend.to_host(project({HIDDEN: one})[TOKENS]) for one in (first, second)], chosen
