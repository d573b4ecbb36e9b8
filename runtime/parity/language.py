"""The language side: every graph, the logits and a whole greedy answer against another side's.

That is PyTorch's, or ONNX Runtime's on a device without PyTorch; arrays are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    HIDDEN,
    HIDDEN_OUT,
    IDS,
    KEY,
    KEY_POSITIONS,
    KEYS,
    LOGITS,
    QUERY,
    QUERY_POSITIONS,
    TEXT_EMBED,
    VALUE,
    VALUES,
    language_graphs,
)
from stc.engines.engine import Engine
from stc.manifest import Precision
from stc.program import Arrays, Side
from stc.runtime.language.kv_buckets import EMPTY
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.sides import OnnxDecoder

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchLanguage

PROMPT = 24
"""Text tokens before the answer."""
ANSWER = 16
"""Text tokens of the greedy answer."""
EMPTY_ROWS = 8
"""Empty rows among the cached ones."""
OTHERS = f"other tokens of {ANSWER}"
"""Figure of an answer: how many of the other side's tokens are not the likeliest here."""
LIMITS: dict[Precision, tuple[float, float, float]] = {
    "fp32": (1e-3, 1e-6, 1e-3),
    "fp16": (3e-1, 1e-2, 3e-1),
}
"""Largest absolute difference of logits; of their distributions, KL in nats; and by how much the
logit of the other side's next token may fall short of the highest one, where rounding decides."""


def language_steps(blocks: int) -> int:
    """How often `compare_language` ticks for a decoder of `blocks` blocks."""
    return 1 + blocks * (2 + 4) + 2


def compare_language(
    model: LanguageModel,
    graphs: Side,
    decoder: TorchLanguage | OnnxDecoder,
    video: NDArray[Any],
    report: ParityReport,
    others: Mapping[str, LanguageModel],
) -> None:
    """`report` has rows for every language graph, for logits and for a greedy answer.

    `graphs` and `decoder` are the other side. `video` [m, D] are kept tokens; they stand before
    PROMPT text tokens in the whole chain, as many as the least context has room for. What
    `others`, decoders with other weights of the bundle, make of the same tokens is told and not
    judged: the other side does not have them.
    """
    ids = np.random.default_rng(0).integers(0, model.spec.vocabulary, PROMPT)
    _compare_graphs(model, graphs, report)
    room = model.buckets.least(model.spec.max_positions) - PROMPT - ANSWER
    hidden = np.concatenate([video[:room].astype(np.float32), decoder.embed(ids)])
    expected = decoder.generate(hidden, ANSWER)
    first = decoder.logits(hidden)
    logits = answer_logits(model, hidden, expected)
    _compare_logits(report, "whole decoder", first, logits[0])
    compare_answer(report, "greedy answer", OTHERS, expected, logits)
    for weights, decoder_with in others.items():
        where, logits = f"{weights} decoder", answer_logits(decoder_with, hidden, expected)
        report.told(where, LOGITS, float(np.abs(first - logits[0]).max()))
        report.told(where, "KL", kl(first, logits[0]))
        report.told(where, OTHERS, _others(expected, logits))
    report.tick()


def compare_answer(
    report: ParityReport,
    where: str,
    others: str,
    expected: list[int],
    logits: list[NDArray[np.float32]],
) -> None:
    """`report` has rows for the other side's answer `expected`, by the `logits` before each token.

    That answer is given token by token, so that one tie broken the other way does not make the rest
    another text. Where no token is another one, each was chosen after the same tokens as the other
    side chose it after: the answers are equal to the letter.
    """
    tie = LIMITS[report.precision][2]
    gaps = [float(row.max() - row[token]) for token, row in zip(expected, logits, strict=True)]
    report.figure(where, "gap", max(gaps), tie)
    ties = sum(_lead(row) <= tie for row in logits)
    report.figure(where, others, _others(expected, logits), ties)


def _others(expected: list[int], logits: list[NDArray[np.float32]]) -> int:
    """How many tokens of the answer `expected` are not the likeliest by `logits`."""
    return sum(int(row.argmax()) != token for token, row in zip(expected, logits, strict=True))


def _lead(logits: NDArray[np.float32]) -> float:
    """By how much the likeliest token's logit exceeds the next one's."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)


def _compare_logits(
    report: ParityReport, where: str, expected: NDArray[np.float32], got: NDArray[np.float32]
) -> None:
    most, divergence, gap = LIMITS[report.precision]
    report.figure(where, LOGITS, float(np.abs(expected - got).max()), most)
    report.figure(where, "KL", kl(expected, got), divergence)
    report.figure(where, "top-1 gap", float(got.max() - got[expected.argmax()]), gap)


def _compare_graphs(model: LanguageModel, graphs: Side, report: ParityReport) -> None:
    """Every graph from equal inputs; the other side's outputs are the next graph's inputs.

    Of few tokens, one where the engines take any size, as in decoding, and of many.
    """
    contracts = language_graphs(model.spec.blocks)
    backend = model.backend

    def both(engine: Engine, inputs: Arrays) -> Arrays:
        expected = graphs.run(engine.name, inputs)
        tensors = {}
        for port in contracts[engine.name].inputs:
            array = inputs[port.name]
            network = port.dtype == "network"
            tensors[port.name] = backend.to_device(array.astype(model.dtype) if network else array)
        for name, value in engine(tensors).items():
            report.graph(engine.name, name, expected[name], backend.to_host(value))
        report.tick()
        return expected

    chunks = model.buckets.chunks or (1, PROMPT)
    sizes = model.buckets.contexts or (PROMPT + EMPTY_ROWS,)
    few, m = chunks[0], chunks[-1]
    ids = np.random.default_rng(0).integers(0, model.spec.vocabulary, m)
    hidden = graphs.run(TEXT_EMBED, {IDS: ids})[HIDDEN]
    report.graph(TEXT_EMBED, HIDDEN, hidden, model.embed(ids))
    report.tick()
    for qkv, attend in zip(model.qkv, model.attend, strict=True):
        fresh = both(qkv, {HIDDEN: hidden})
        both(qkv, {HIDDEN: hidden[-few:]})
        # From the context's end, and at its start.
        for start, rows in ((model.spec.max_positions - m, sizes[-1]), (0, sizes[0])):
            places = np.random.default_rng(1).permutation(rows)[:m]
            shape = (model.spec.key_heads, rows, model.spec.head_width)
            cached = {name: np.zeros(shape, np.float32) for name in (KEY, VALUE)}
            for name, buffer in cached.items():
                buffer[:, places] = fresh[name]
            positions = start + np.arange(m)
            key_positions = np.full(rows, EMPTY, np.int64)
            key_positions[places] = positions
            for queries in (slice(m - few, m), slice(0, m)):
                inputs = {
                    HIDDEN: hidden[queries],
                    QUERY: fresh[QUERY][:, queries],
                    KEYS: cached[KEY],
                    VALUES: cached[VALUE],
                    QUERY_POSITIONS: positions[queries],
                    KEY_POSITIONS: key_positions,
                }
                following = both(attend, inputs)[HIDDEN_OUT]
        hidden = following
    expected = graphs.run(model.head.name, {HIDDEN: hidden[-1:]})[LOGITS]
    last = backend.to_device(hidden[-1:].astype(model.dtype))
    got = backend.to_host(model.head({HIDDEN: last})[LOGITS])
    _compare_logits(report, model.head.name, expected[0], got[0])
    report.tick()


def answer_logits(
    model: LanguageModel, hidden: NDArray[Any], answer: list[int]
) -> list[NDArray[np.float32]]:
    """Logits [V] before every token of `answer`, which follows the tokens `hidden` [m, D]."""
    rows = PlainRows(model, len(hidden) + len(answer))
    logits = [rows.logits(hidden, 0)]
    for number, token in enumerate(answer[:-1]):
        logits.append(rows.logits(model.embed(np.array([token])), len(hidden) + number))
    return logits


def kl(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    """Kullback-Leibler divergence of the next-token distributions of two rows of logits [V].

    NaN when a distribution is not one, because logits are NaN or infinite.
    """
    with np.errstate(invalid="ignore"):
        a, b = (x.astype(np.float64) - x.max() for x in (expected, got))
        log_p, log_q = (x - math.log(float(np.exp(x).sum())) for x in (a, b))
        divergence = (np.exp(log_p) * (log_p - log_q)).sum()
    # Unlike `max`, it keeps NaN.
    return float(np.maximum(0.0, divergence))
