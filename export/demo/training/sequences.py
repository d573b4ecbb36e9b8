"""Streams as batches for the language model: one masked sequence per stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stc.export.demo.training.draws.facts import FRAME_HEADS, HEADS, IGNORED
from stc.export.demo.training.draws.streams import ALL, Stream

COUNTS = list(FRAME_HEADS).index("now")
"""The first of the heads that speak of a whole frame."""


@dataclass(frozen=True)
class Batch:
    """video [B, v, D] and ids [B, s] behind one another, with what each may look at.

    allowed: bool [B, 1, p+v+s, p+v+s] with the p text tokens before the video. positions [B, ..].
    labels, words [B, s] and targets [B, s, len(HEADS)]: of the questions' tokens. shown
    [B, v, len(FRAME_HEADS)] and moved [B, v, 2]: of the video's. choices: int64 [c, 3], of each
    question with options its row, its last text token and the right option's, among all tokens.
    """

    before: Tensor
    video: Tensor
    ids: Tensor
    allowed: Tensor
    positions: Tensor
    labels: Tensor
    words: Tensor
    targets: Tensor
    shown: Tensor
    moved: Tensor
    choices: Tensor


def kept_of(features: Tensor, keep: int, rank: NDArray[np.float32] | None) -> Tensor:
    """int64 [F, keep] of features [F, 49, D]: the lowest of `rank` [F, 49], or what the paper's
    pruner keeps."""
    if keep == ALL:
        return torch.arange(ALL, device=features.device).expand(len(features), -1)
    low = likeness(features) if rank is None else torch.from_numpy(rank).to(features.device)
    return low.topk(keep, largest=False).indices.sort().values


def likeness(features: Tensor) -> Tensor:
    """Likeness of tokens to both anchors [F, 49], low = keep; the past is all earlier frames."""
    mean = features.mean(1)
    count = torch.arange(1, len(mean) + 1, device=mean.device).unsqueeze(1)
    past = torch.cat([mean[:1], (mean.cumsum(0) / count)[:-1]])
    unit = F.normalize(features, dim=-1)
    anchors = F.normalize(mean, dim=-1) + F.normalize(past, dim=-1)
    return torch.einsum("fnd,fd->fn", unit, anchors)


def batch(before: NDArray[np.int64], streams: Sequence[tuple[Tensor, Stream]]) -> Batch:
    """Streams with their features [F, 49, D] as one batch, on the features' device."""
    prefix, device = len(before), streams[0][0].device
    longest_video = max(stream.keep * len(features) for features, stream in streams)
    longest_text = max(sum(len(one.ids) for one in stream.asked) for _, stream in streams)
    shape = len(streams), prefix + longest_video + longest_text
    video = torch.zeros(len(streams), longest_video, streams[0][0].shape[2], device=device)
    shown = torch.full(
        (len(streams), longest_video, len(FRAME_HEADS)), IGNORED, dtype=torch.long, device=device
    )
    moved = torch.full((len(streams), longest_video, 2), torch.nan, device=device)
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
    choices: list[tuple[int, int, int]] = []
    for row, (features, stream) in enumerate(streams):
        frames, keep = len(features), stream.keep
        count = frames * keep
        kept = kept_of(features, keep, stream.rank)
        video[row, :count] = _of_kept(features, kept)
        told = _of_kept(torch.from_numpy(stream.shown).to(device), kept).view(frames, keep, -1)
        told[:, :-1, COUNTS:] = IGNORED  # only a frame's last token has seen all of it
        shown[row, :count] = told.flatten(0, 1)
        moved[row, :count] = _of_kept(torch.from_numpy(stream.moved).to(device), kept)
        group[row, : prefix + count] = -1
        frame[row, :prefix] = -1
        frame[row, prefix : prefix + count] = np.repeat(np.arange(frames), keep)
        sees[row, : prefix + count] = 10**5
        positions[row, : prefix + count] = np.arange(prefix + count)
        at = 0
        for number, one in enumerate(stream.asked):
            text, whole = slice(at, at + len(one.ids)), prefix + longest_video + at
            ids[row, text], labels[row, text], words[row, text] = one.ids, one.labels, one.words
            targets[row, text] = one.targets
            span = slice(whole, whole + len(one.ids))
            group[row, span], sees[row, span] = number, one.frame
            if one.right >= 0:
                (end,) = np.flatnonzero(one.words != IGNORED)
                choices.append((row, whole + int(end), whole + one.right))
            start = prefix + keep * min(frames, one.frame + 1)
            positions[row, span] = start + np.arange(len(one.ids))
            at = text.stop
    g, of, up_to = (torch.from_numpy(one).to(device) for one in (group, frame, sees))
    earlier = torch.ones(shape[1], shape[1], dtype=torch.bool, device=device).tril()
    in_sight = (g == -1).unsqueeze(1) & (of.unsqueeze(1) <= up_to.unsqueeze(2))
    same = (g.unsqueeze(1) == g.unsqueeze(2)) & (g != -2).unsqueeze(1)
    allowed = earlier & (in_sight | same)
    allowed |= torch.eye(shape[1], dtype=torch.bool, device=device)
    return Batch(
        torch.from_numpy(before).to(device).expand(len(streams), -1),
        video,
        torch.from_numpy(ids).to(device),
        allowed.unsqueeze(1),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(labels).to(device),
        torch.from_numpy(words).to(device),
        torch.from_numpy(targets).to(device),
        shown,
        moved,
        torch.tensor(choices, dtype=torch.long, device=device).view(-1, 3),
    )


def _of_kept(of: Tensor, kept: Tensor) -> Tensor:
    """What is kept, [F * k, D], of tokens [F, 49, D]."""
    return of.gather(1, kept.unsqueeze(2).expand(-1, -1, of.shape[2])).flatten(0, 1)
