"""Engines against ONNX Runtime: every graph at every size on equal inputs, then the whole chain.

Two made-up frames walk through the tower as they do when a bundle is exported: a reference frame
and a frame whose upper half differs. What the reference backend computes is the next graph's input
for both. Knows nothing of TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import (
    COUNT,
    FRAME_MEAN,
    HIDDEN,
    HIDDEN_OUT,
    HISTORY_COUNT,
    HISTORY_MEAN,
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
from stc.engines.both import Arrays, Both
from stc.engines.likeness import Compared
from stc.engines.plan import Buckets
from stc.manifest import Manifest
from stc.settings import SCORINGS

Tick = Callable[[str], None]
"""Told of each graph when it has been compared."""


def compare_vision(both: Both, buckets: Buckets, tick: Tick) -> Iterator[Compared]:
    """Every vision graph of the bundle, at every size of `buckets`, block by block.

    Raises EngineError when a graph cannot be run.
    """
    spec = both.manifest.vision
    hidden = []
    pixels = made_up_frames(both.manifest)
    for found, outputs in both.run(contracts.EMBED, [({}, {PIXEL_VALUES: one}) for one in pixels]):
        yield found
        hidden.append(outputs[HIDDEN])
    tick(contracts.EMBED)
    for block in range(spec.blocks):
        fresh, scored, compared = _keys(both, block, hidden)
        yield from compared
        tick(contracts.keys_graph(block))
        if block == 0:
            yield from _select(both, scored[SCORE], buckets)
            tick(contracts.SELECT)
        hidden, compared = _update(both, block, hidden, fresh, scored, buckets)
        yield from compared
        tick(contracts.update_graph(block))
    tokens = []
    for found, outputs in both.run(contracts.PROJECT, [({}, {HIDDEN: one}) for one in hidden]):
        yield found
        tokens.append(outputs[TOKENS])
    tick(contracts.PROJECT)
    for scoring in SCORINGS:
        name = contracts.prune_graph(scoring)
        yield from _prune(both, name, tokens, buckets)
        tick(name)


def made_up_frames(manifest: Manifest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """pixel_values of a frame, and of the same frame with its upper half changed."""
    side, random = manifest.vision.image_size, np.random.default_rng(0)
    first = random.uniform(-1, 1, (3, side, side)).astype(np.float32)
    second = first.copy()
    second[:, : side // 2] = random.uniform(-1, 1, (3, side // 2, side))
    return first, second


def _keys(
    both: Both, block: int, hidden: list[NDArray[Any]]
) -> tuple[Arrays, Arrays, list[Compared]]:
    """The fresh keys of the first frame, those of the second with its score against them."""
    graph, spec = contracts.keys_graph(block), both.manifest.vision
    # A reference key of zeros has no direction, so no cosine that could be compared.
    blank = np.ones((spec.heads, spec.tokens, spec.head_width))
    ((one, fresh),) = both.run(graph, [({}, {HIDDEN: hidden[0], REF_KEY: blank})])
    ((two, scored),) = both.run(graph, [({}, {HIDDEN: hidden[1], REF_KEY: fresh[KEY]})])
    return fresh, scored, [one, two]


def _select(both: Both, score: NDArray[Any], buckets: Buckets) -> Iterator[Compared]:
    calls = [
        ({"M": count}, {SCORE: score, COUNT: np.array([count])}) for count in buckets.recomputed
    ]
    for found, _ in both.run(contracts.SELECT, calls):
        yield found


def _update(
    both: Both,
    block: int,
    hidden: list[NDArray[Any]],
    fresh: Arrays,
    scored: Arrays,
    buckets: Buckets,
) -> tuple[list[NDArray[Any]], list[Compared]]:
    """Both frames' hidden states after the block; the second frame at every M."""
    graph, spec = contracts.update_graph(block), both.manifest.vision
    whole = {
        HIDDEN: hidden[0],
        KEY: fresh[KEY],
        REF_VALUE: np.zeros((spec.heads, spec.tokens, spec.head_width)),
        REF_RESIDUAL: np.zeros_like(hidden[0]),
        INDICES: np.arange(spec.tokens),
    }
    ((found, full),) = both.run(graph, [({"M": spec.tokens}, whole)])
    lowest = np.argsort(scored[SCORE], kind="stable")
    part = {
        HIDDEN: hidden[1],
        KEY: scored[KEY],
        REF_VALUE: full[VALUE],
        REF_RESIDUAL: full[RESIDUAL],
    }
    calls = [
        ({"M": count}, {**part, INDICES: np.sort(lowest[:count])})
        for count in buckets.recomputed
        if count < spec.tokens
    ]
    results = list(both.run(graph, calls))
    second = results[0][1][HIDDEN_OUT] if results else full[HIDDEN_OUT]
    return [full[HIDDEN_OUT], second], [found, *(one for one, _ in results)]


def _prune(
    both: Both, graph: str, tokens: list[NDArray[Any]], buckets: Buckets
) -> Iterator[Compared]:
    """The first frame without history, the second with the first as history, at every k."""
    ports = both.manifest.graphs[graph].inputs
    memory = next(port.shape for port in ports if port.name == HISTORY_MEAN)
    mean, seen = np.zeros([int(axis) for axis in memory]), np.zeros(1)
    for count in buckets.kept:
        for number, frame in enumerate(tokens):
            inputs = {
                TOKENS: frame,
                HISTORY_MEAN: mean,
                HISTORY_COUNT: seen + number,
                COUNT: np.array([count]),
            }
            ((found, outputs),) = both.run(graph, [({"k": count}, inputs)])
            mean = outputs[FRAME_MEAN]
            yield found
