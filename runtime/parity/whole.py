"""The whole model against transformers' own: a question about a video, pictures to stop tokens.

Everything else that is compared has the checkpoint read by this package on both sides. Here the
other side is what transformers makes of the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import LOGITS
from stc.method.difference import ANSWER, PIXEL, TEXT, pixels_apart
from stc.method.graphs import PIXEL_VALUES, TOKENS
from stc.prompts.prompt import Prompt
from stc.runtime.language.model import LanguageModel
from stc.runtime.parity.language import answer_logits, compare_answer
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.sides import TowerStream
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings

if TYPE_CHECKING:
    from stc.runtime.parity.sides import Pretrained

WHERE = "whole model"
FRAMES = 2
"""Frames that are seen and asked about, of those that are compared."""

QUESTION = "What is in the video?"
STOP_TOKENS, PROMPT_TOKENS = "stop tokens that differ", "prompt tokens that differ"
OTHERS = f"other tokens of {ANSWER}"
"""Figure of an answer, as in `stc.runtime.parity.language`; it may be shorter."""

Array = NDArray[Any]


def whole_steps(frames: int, *, with_language: bool) -> int:
    """How often `compare_whole_vision` and `compare_whole_answer` tick for `frames` frames."""
    return min(frames, FRAMES) + with_language


def compare_whole_vision(
    tower: VisionTower, frames: Sequence[Frame], whole: Pretrained, report: ParityReport
) -> tuple[Array, Array]:
    """`report` has rows for the pixel values and visual tokens of the first FRAMES frames.

    Returns those tokens [frames * n, D], the other side's and the bundle's.
    """
    preprocess, stream = Preprocessor(tower.spec), TowerStream(tower, Settings())
    expected: list[Array] = []
    got: list[Array] = []
    for frame in frames[:FRAMES]:
        pixels, other = preprocess(frame.rgb), whole.pixel_values(frame.rgb)
        report.figure(WHERE, PIXEL_VALUES, pixels_apart(other, pixels), PIXEL)
        got.append(stream.reference(pixels).tokens)
        expected.append(whole.visual_tokens(other))
        report.whole(WHERE, TOKENS, expected[-1], got[-1], partial(whole.tokens_move, other))
        report.tick()
    return np.concatenate(expected), np.concatenate(got)


def compare_whole_answer(
    model: LanguageModel,
    prompt: Prompt | None,
    tokens: tuple[Array, Array],
    whole: Pretrained,
    report: ParityReport,
) -> None:
    """`report` has rows for the prompt, the logits and the stop tokens of a greedy answer.

    `tokens` are what `compare_whole_vision` returned. Without `prompt` the text is seeded noise.
    """
    spec = model.spec
    # Where transformers would never stop, what config.json names does no harm.
    theirs = set(whole.stop_token_ids or spec.stop_token_ids)
    report.figure(WHERE, STOP_TOKENS, len(theirs ^ set(spec.stop_token_ids)), 0)
    if prompt is None:
        ids = np.random.default_rng(0).integers(0, spec.vocabulary, 2 * TEXT)
        before, after = ids[:TEXT], ids[TEXT:]
    else:
        before, after = prompt.before, prompt.after(QUESTION)
        rendered = np.concatenate([before, [spec.video_token_id], after])
        apart = _apart(whole.prompt_ids(QUESTION), rendered)
        report.figure(WHERE, PROMPT_TOKENS, apart, 0)
    room = model.buckets.least(spec.max_positions) - len(before) - len(after) - ANSWER
    expected_video, video = (side[: max(1, room)] for side in tokens)
    given = np.concatenate([whole.embed(before), expected_video, whole.embed(after)])
    answer, expected = whole.answer(given, ANSWER)
    hidden = np.concatenate([model.embed(before), video, model.embed(after)])
    logits = answer_logits(model, hidden, answer)
    for theirs_row, row in zip(expected, logits, strict=True):
        report.whole(WHERE, LOGITS, theirs_row, row, partial(whole.logits_move, given))
    compare_answer(report, WHERE, OTHERS, answer, logits)
    report.tick()


def _apart(expected: Array, got: Array) -> int:
    """At how many places two rows of ids differ, the longer one's surplus among them."""
    common = min(len(expected), len(got))
    surplus = max(len(expected), len(got)) - common
    return int((expected[:common] != got[:common]).sum()) + surplus
