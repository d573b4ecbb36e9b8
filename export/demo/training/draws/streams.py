"""What a step of the language model's stages draws: streams, and their questions behind them.

A sequence is the text before the video, the kept tokens of all frames, and every question of the
stream behind one another. A question sees the frames up to its own and nothing of other questions,
and is numbered as if it stood alone: what it computes equals what it would compute when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.export.demo.tokenizer import DemoTokenizer
from stc.export.demo.training.codebook import pooled, shares
from stc.export.demo.training.draws.facts import HEADS, IGNORED, Facts, option
from stc.scenes.labels import Labels
from stc.scenes.scene import make_scene
from stc.scenes.words import COLOURS, KINDS, Question

ALL = 49
EVEN_FROM = 0.5
"""Share of the training on questions about made features from which on all of KEEPS are drawn;
before that the two smallest: short sequences teach sooner."""
KEEPS = (ALL, 30, 20, 14, 10)
"""Tokens kept of a frame, drawn evenly: no budget is what the model is used to."""
QUESTIONS = 14
"""Of a stream, at most."""


@dataclass(frozen=True)
class Asked:
    """A question as it follows the video: ids [m], the answer's among them.

    labels [m]: what the next token is, where it is the answer's. words [m]: where the answer
    begins, its word, also where a letter is asked for. targets [m, len(HEADS)]. right: the place
    among ids of the right option's last token, -1 where there are none.
    """

    frame: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    words: NDArray[np.int64]
    targets: NDArray[np.int64]
    right: int


@dataclass(frozen=True)
class Stream:
    """What a watcher of a scene sees and is asked.

    seen: uint8 [F, 112, 112, 3], frames; or float32 [F, 49, len(NAMES)], what a tower that is
    nearly right would say, whose features then get noise of `loudness`, drawn from `noise`.
    rank: float32 [F, 49], of which the lowest are kept; None: the pruner's choice. shown: int64
    [F, 49, len(FRAME_HEADS)], targets of the frames' tokens. moved: float32 [F, 49, 2], how far
    their things went; NaN where that is not known.
    """

    seen: NDArray[Any]
    keep: int
    rank: NDArray[np.float32] | None
    asked: Sequence[Asked]
    shown: NDArray[np.int64]
    moved: NDArray[np.float32]
    loudness: float = 0.0
    noise: int = 0


@dataclass(frozen=True)
class StreamDraw:
    """Draws `streams` streams with their questions; `real`: frames, not what a tower would say;
    without `questions`: with things, and nothing is asked."""

    asker: Asker
    streams: int
    real: bool
    questions: bool = True

    def __call__(self, random: np.random.Generator, share: float) -> list[Stream]:
        # One budget for a batch: streams of unlike length would be filled up with padding.
        soon = self.questions and not self.real and share <= EVEN_FROM
        keeps = KEEPS[-2:] if soon else KEEPS
        keep = int(keeps[random.integers(len(keeps))])
        found: list[Stream] = []
        while len(found) < self.streams:
            scene = make_scene("train", int(random.integers(1 << 40)))
            labels, loudness = scene.labels, 0.0
            questions = scene.questions(random, QUESTIONS) if self.questions else []
            if not (questions if self.questions else labels.things):
                continue
            if self.real:
                seen: NDArray[Any] = scene.frames()
            else:
                seen, loudness = pooled(shares(labels)), random.uniform(0.0, 0.3)
                loud = np.float32(random.uniform(0.02, 0.1))
                seen = seen + loud * random.standard_normal(seen.shape, dtype=np.float32)
            found.append(
                Stream(
                    seen,
                    keep,
                    rank_of(scene.frame_count, keep, random),
                    [self.asker.asked(labels, question) for question in questions],
                    *shown_of(labels),
                    loudness,
                    int(random.integers(1 << 40)),
                )
            )
        return found


def shown_of(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The targets of every token of every frame, [F, 49, len(FRAME_HEADS)] and [F, 49, 2]."""
    frames = [Facts(labels, frame).shown() for frame in range(len(labels.owner))]
    shown, moved = zip(*frames, strict=True)
    return np.stack(shown), np.stack(moved)


def rank_of(frames: int, keep: int, random: np.random.Generator) -> NDArray[np.float32] | None:
    """A rank [F, 49] at random, or None for the pruner's: where so many are kept that hardly
    anything is lost, two of five are the former."""
    if keep < 20 or random.random() >= 0.4:
        return None
    return random.random((frames, ALL)).astype(np.float32)


class Asker:
    """Turns questions into text tokens, as the product's prompt does."""

    def __init__(self, tokenizer: DemoTokenizer) -> None:
        self._tokenizer = tokenizer
        before, self._after = tokenizer.prompt_parts()
        self.before = np.array(before, np.int64)
        self.stop = tokenizer.stop
        self._words = {
            tokenizer.encode(mark + word)[0]: word
            for word in (*COLOURS, *KINDS)
            for mark in ("", " ")
            if len(tokenizer.encode(mark + word)) == 1
        }

    def asked(self, labels: Labels, question: Question) -> Asked:
        """`question` about `labels` as text tokens with all targets."""
        facts = Facts(labels, question.frame)
        text = self._tokenizer.encode("\n" + question.text)
        answer = [*self._tokenizer.encode(question.answer), self._tokenizer.stop]
        ids = np.array([*text, *self._after, *answer], np.int64)
        expected = np.full(len(ids), IGNORED, np.int64)
        begin = len(ids) - len(answer)
        expected[begin - 1 : -1] = ids[begin:]
        words = np.full(len(ids), IGNORED, np.int64)
        words[begin - 1] = self._tokenizer.encode(word_of(question))[0]
        targets = np.full((len(ids), len(HEADS)), IGNORED, np.int64)
        for place, token in enumerate(text):
            if token in self._words:
                targets[place] = facts.about(self._words[token])
        options = self._options(question, text)
        for letter, place in options:
            targets[place] = np.maximum(targets[place], option(letter, letter == question.answer))
        targets[begin - 1] = facts.counts()
        right = next((place for letter, place in options if letter == question.answer), -1)
        return Asked(question.frame, ids[:-1], expected[:-1], words[:-1], targets[:-1], right)

    def _options(self, question: Question, text: Sequence[int]) -> list[tuple[str, int]]:
        """Each option's letter and the place of its last token."""
        found, told = [], question.text.split(" A. ")[0] if question.options else ""
        for letter, word in zip("ABCD", question.options, strict=False):
            told += f" {letter}. {word}"
            found.append((letter, len(self._tokenizer.encode("\n" + told)) - 1))
        return [(letter, place) for letter, place in found if place < len(text)]


def word_of(question: Question) -> str:
    """The word that answers `question`, also where its letter is asked for."""
    if not question.options:
        return question.answer
    return question.options["ABCD".index(question.answer)]
