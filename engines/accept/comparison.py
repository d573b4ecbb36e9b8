"""Engines against ONNX Runtime: every graph at every size on equal inputs, then the whole chain.

Knows nothing of TensorRT: either side is one of `stc.program`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import KEY_POSITIONS, KEYS, QUERY, QUERY_POSITIONS
from stc.engines.library.plan import Buckets, EngineSpec, Sizes, shape_at
from stc.manifest import Manifest, PortEntry
from stc.method.difference import Difference, difference, judged
from stc.method.family import PROJECTING, changed_frames, check_program
from stc.method.graphs import INDICES, TOKENS
from stc.program import Arrays, Call, Side, run_paired

Tick = Callable[[str], None]
"""Told of each graph when it has been compared."""

Sides = tuple[Side, Side]
"""What is expected, and what is compared with it."""

GRAPH_COSINE = 0.999
"""Lowest cosine of a token, of one graph on equal inputs."""

GRAPH_RELATIVE_L2 = 0.05
"""A cosine does not see a wrong length; this is about the error that GRAPH_COSINE allows."""

KEY_SIZE = 200.0
"""Of one of a key's numbers, whatever its token: biases make some of Qwen2's so large."""

SCORE_SIZE = 4000.0
"""Of the products of such keys with queries; in float16 the next number is 2 or 4 away, while
softmax tells apart what differs by less than 1."""

NEAR = 16
"""Positions that rows with large keys are spread over. Few, so that rotation leaves the large
number where float16 has it: what is rounded then is the product."""

NOVELTY_GAP = 1e-2
"""How far a pruner's choice may miss the most novel tokens: less is float16's rounding."""


@dataclass(frozen=True)
class Compared:
    """One graph at one size: the lowest cosine of every output, -1 for NaN."""

    graph: str
    sizes: Sizes
    cosines: dict[str, float]
    relative_l2: float

    @property
    def passed(self) -> bool:
        """Whether every output is close."""
        return min(self.cosines.values()) >= GRAPH_COSINE and self.relative_l2 <= GRAPH_RELATIVE_L2


def compare_vision(
    manifest: Manifest, sides: Sides, buckets: Buckets, tick: Tick
) -> list[Compared]:
    """Every vision graph of the bundle, at every size of `buckets`, block by block.

    Raises EngineError when a graph cannot be run.
    """
    spec, precision = manifest.vision, manifest.provenance.precision
    program = check_program(spec, precision, buckets.recomputed, buckets.kept)
    found: list[Compared] = []

    def judge(call: Call, inputs: Arrays, wanted: Arrays, given: Arrays) -> None:
        found.append(compared_outputs(call.graph, dict(call.sizes), inputs, wanted, given))

    run_paired(program, *sides, changed_frames(spec), judge, ended=tick)
    return found


def chain_cosine(manifest: Manifest, sides: Sides, recomputed: int) -> float:
    """The lowest cosine of a token after the projector, of a reference frame and a reuse frame,
    each side on its own outputs: what adds up over the blocks.

    The reuse frame recomputes M = `recomputed` tokens in every block, those that the expected side
    selects in block 0: choices that differ by a tie would be compared otherwise.
    """
    spec, precision = manifest.vision, manifest.provenance.precision
    program = check_program(spec, precision, (recomputed,), selection="shared")
    cosines: list[float] = []

    def judge(call: Call, _inputs: Arrays, wanted: Arrays, given: Arrays) -> None:
        if call.stage == PROJECTING:
            cosines.append(by_token(wanted[TOKENS], given[TOKENS]).min_cosine)

    run_paired(program, *sides, changed_frames(spec), judge, apart=True)
    return min(cosines)


def compare_language(
    manifest: Manifest, sides: Sides, specs: list[EngineSpec], tick: Tick
) -> list[Compared]:
    """`specs`, engines of the language model, at every size they are built for, on made-up hidden
    states and rows; what attends, on keys as large as Qwen2's as well.

    Raises EngineError when a graph cannot be run.
    """
    found: list[Compared] = []
    for spec in specs:
        random = np.random.default_rng(0)
        ports = manifest.graphs[spec.graph].inputs
        for sizes in spec.profiles:
            inputs = {port.name: _made_up(port, sizes, random).astype(port.dtype) for port in ports}
            for made in (inputs, _with_large_keys(inputs)) if KEYS in inputs else (inputs,):
                wanted, given = (side.run(spec.graph, made) for side in sides)
                found.append(compared_outputs(spec.graph, sizes, made, wanted, given))
        for side in sides:
            side.end(spec.graph)
        tick(spec.graph)
    return found


def compared_outputs(
    graph: str, sizes: Sizes, inputs: Arrays, expected: Arrays, got: Arrays
) -> Compared:
    """How alike both sides' outputs of `graph` are, for equal `inputs` at `sizes`."""
    cosines, errors = {}, [0.0]
    for one in judged(graph, inputs, expected, got):
        if one.gap is None:
            found = by_token(one.expected, one.got)
            cosines[one.output] = found.min_cosine
            errors.append(found.relative_l2)
        else:
            # Scores are equal on both sides, novelties only up to rounding.
            most = 0.0 if one.output == INDICES else NOVELTY_GAP
            cosines[one.output] = 1.0 if one.gap <= most else -1.0
    return Compared(graph, sizes, cosines, max(errors))


def by_token(expected: NDArray[Any], got: NDArray[Any]) -> Difference:
    """The difference of `got` from `expected`; cosine -1 where one is not finite or shapes differ.

    Tokens are the rows of [T, C], all heads of [H, T, d] together, or the whole of a vector.
    """
    found = Difference(np.nan, np.nan, np.nan)
    if expected.shape == got.shape:
        heads = expected.ndim == 3
        tokens = (
            one.swapaxes(0, 1).reshape(one.shape[1], -1) if heads else one
            for one in (expected, got)
        )
        found = difference(*tokens)
    return found if np.isfinite(found.relative_l2) else Difference(np.inf, np.inf, -1.0)


def _made_up(port: PortEntry, sizes: Sizes, random: np.random.Generator) -> NDArray[Any]:
    shape = shape_at(port.shape, sizes)
    if port.name == KEY_POSITIONS:
        # The last quarter of the rows is empty.
        return np.where(np.arange(shape[0]) < 3 * shape[0] // 4, np.arange(shape[0]), -1)
    if port.name == QUERY_POSITIONS:
        return sizes["S"] // 2 + np.arange(shape[0])
    return random.standard_normal(shape)


def _with_large_keys(inputs: Arrays) -> Arrays:
    """The `inputs` of what attends, with a number in every key that is as large as Qwen2's are.

    Its products with queries are SCORE_SIZE, and the same in every row: a softmax that loses
    nothing does not see them. The number is one that rotation turns least.
    """
    query, keys = (2.0 * inputs[QUERY], inputs[KEYS].astype(np.float64))
    width = keys.shape[-1]
    slowest = width // 2 - 1
    keys[..., slowest] += KEY_SIZE
    query[..., slowest] += SCORE_SIZE / KEY_SIZE * width**0.5
    rows = inputs[KEY_POSITIONS].shape[0]
    near = {
        name: np.where(inputs[name] < 0, -1, inputs[name] * NEAR // rows)
        for name in (KEY_POSITIONS, QUERY_POSITIONS)
    }
    large = {QUERY: query.astype(inputs[QUERY].dtype), KEYS: keys.astype(inputs[KEYS].dtype)}
    return {**inputs, **near, **large}
