"""Streams and their questions as batches for the language model: one masked sequence per stream.

A sequence is the text before the video, the kept tokens of all frames, and every question of the
stream behind one another. A question sees the frames up to its own and nothing of other questions,
and is numbered as if it stood alone: what it computes equals what it would compute when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stc.export.demo.tokenizer import DemoTokenizer
from stc.export.demo.training.facts import HEADS, IGNORED, Facts, option
from stc.scenes.labels import Labels
from stc.scenes.words import COLOURS, KINDS, Question

ALL = 49
KEEPS = (ALL, 30, 20, 14, 10)
"""Tokens kept of a frame, drawn evenly: no budget is what the model is used to."""
PLACES = 7 * 7


@dataclass(frozen=True)
class Asked:
    """A question as it follows the video: ids [m], the answer's among them.

    labels [m]: what the next token is, where it is the answer's. words [m]: where the answer
    begins, its word, also where a letter is asked for. targets [m, len(HEADS)].
    """

    frame: int
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    words: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """video [B, v, D] and ids [B, s] behind one another, with what each may look at.

    allowed: bool [B, 1, v+s+p, v+s+p] with the p text tokens before the video. positions [B, ..].
    """

    before: Tensor
    video: Tensor
    ids: Tensor
    allowed: Tensor
    positions: Tensor
    labels: Tensor
    words: Tensor
    targets: Tensor


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
        for letter, place in self._options(question, text):
            targets[place] = np.maximum(targets[place], option(letter, letter == question.answer))
        targets[begin - 1] = facts.counts()
        return Asked(question.frame, ids[:-1], expected[:-1], words[:-1], targets[:-1])

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


def kept_of(features: Tensor, keep: int, random: np.random.Generator) -> Tensor:
    """int64 [F, keep] of features [F, 49, D]: what the paper's pruner keeps, or at random where so
    many are kept that hardly anything is lost."""
    frames = len(features)
    if keep == PLACES:
        return torch.arange(PLACES).expand(frames, -1)
    if keep >= 20 and random.random() < 0.4:
        rank = torch.from_numpy(random.random((frames, PLACES)).astype(np.float32))
    else:
        rank = likeness(features)
    return rank.topk(keep, largest=False).indices.sort().values


def likeness(features: Tensor) -> Tensor:
    """Likeness of tokens to both anchors [F, 49], low = keep; the past is all earlier frames."""
    mean = features.mean(1)
    count = torch.arange(1, len(mean) + 1).unsqueeze(1)
    past = torch.cat([mean[:1], (mean.cumsum(0) / count)[:-1]])
    unit = F.normalize(features, dim=-1)
    anchors = F.normalize(mean, dim=-1) + F.normalize(past, dim=-1)
    return torch.einsum("fnd,fd->fn", unit, anchors)


def batch(
    before: NDArray[np.int64], streams: Sequence[tuple[Tensor, Tensor, Sequence[Asked]]]
) -> Batch:
    """Streams of (features [F, 49, D], kept [F, k], questions) as one batch."""
    prefix = len(before)
    longest_video = max(kept.numel() for _, kept, _ in streams)
    longest_text = max(sum(len(one.ids) for one in asked) for _, _, asked in streams)
    total = prefix + longest_video + longest_text
    shape = len(streams), total
    width = streams[0][0].shape[2]
    video = torch.zeros(len(streams), longest_video, width)
    # Of each token: which question it belongs to (-1: none, -2: padding), the last frame that it
    # sees, the frame it is of, its position.
    group = np.full(shape, -2, np.int64)
    sees = np.full(shape, -1, np.int64)
    frame = np.full(shape, 10**6, np.int64)
    positions = np.zeros(shape, np.int64)
    ids = np.zeros((len(streams), longest_text), np.int64)
    labels = np.full((len(streams), longest_text), IGNORED, np.int64)
    words = labels.copy()
    targets = np.full((len(streams), longest_text, len(HEADS)), IGNORED, np.int64)
    for row, (features, kept, asked) in enumerate(streams):
        frames, keep = kept.shape
        count = kept.numel()
        video[row, :count] = features.gather(1, kept.unsqueeze(2).expand(-1, -1, width)).reshape(
            count, width
        )
        group[row, : prefix + count] = -1
        frame[row, :prefix] = -1
        frame[row, prefix : prefix + count] = np.repeat(np.arange(frames), keep)
        sees[row, : prefix + count] = 10**5
        positions[row, : prefix + count] = np.arange(prefix + count)
        at = 0
        for number, one in enumerate(asked):
            text, whole = slice(at, at + len(one.ids)), prefix + longest_video + at
            ids[row, text], labels[row, text], words[row, text] = one.ids, one.labels, one.words
            targets[row, text] = one.targets
            span = slice(whole, whole + len(one.ids))
            group[row, span], sees[row, span] = number, one.frame
            start = prefix + keep * min(frames, one.frame + 1)
            positions[row, span] = start + np.arange(len(one.ids))
            at = text.stop
    g = torch.from_numpy(group)
    earlier = torch.ones(total, total, dtype=torch.bool).tril()
    of_video = (g == -1).unsqueeze(1)
    in_sight = torch.from_numpy(frame).unsqueeze(1) <= torch.from_numpy(sees).unsqueeze(2)
    same = g.unsqueeze(1) == g.unsqueeze(2)
    allowed = earlier & ((of_video & in_sight) | (same & (g != -2).unsqueeze(1)))
    allowed |= torch.eye(total, dtype=torch.bool)
    return Batch(
        before=torch.from_numpy(before).expand(len(streams), -1),
        video=video,
        ids=torch.from_numpy(ids),
        allowed=allowed.unsqueeze(1),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        words=torch.from_numpy(words),
        targets=torch.from_numpy(targets),
    )
