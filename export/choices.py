"""The graphs without weights as torch modules: `compare`, `select`, and `prune` for every scoring,
which choose tokens; `place`, `add` and `merge`, which bring rows back to where they belong.

They are the method's own, whatever tower the tokens come from.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stc.export.layers import likeness, placed
from stc.method.pruner import BANDWIDTHS, LENGTH_EPS
from stc.settings import Scoring


class Compare(nn.Module):
    """key [T, C], ref_key [T, C] -> score float32 [T]: their cosine, ALWAYS for prefix tokens."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, key: Tensor, ref_key: Tensor) -> Tensor:
        return likeness(key, ref_key, self.prefix_tokens)


class Select(nn.Module):
    """score float32 [T] -> indices int64 [M], the M lowest, ascending."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, score: Tensor) -> Tensor:
        lowest = torch.topk(score, self.count, largest=False, sorted=True).indices
        return ascending(lowest, self.count)


class Place(nn.Module):
    """indices int64 [M], ascending -> places int64 [T]: where each row lies once the fresh rows of
    `indices` stand behind the T old ones."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, indices: Tensor) -> Tensor:
        at = indices.float()
        # How many are lower: 0 to M - 1, without an operator that counts.
        rank = (at.unsqueeze(1) - at.unsqueeze(0)).clamp(0.0, 1.0).sum(1)
        return torch.arange(self.tokens).index_copy(0, indices, (rank + self.tokens).long())


class Add(nn.Module):
    """hidden [T, C], residual [T, C] -> hidden_out [T, C]."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return hidden + residual


class Merge(nn.Module):
    """hidden [T, C], ref_residual [T, C], residual [M, C], places int64 [T] -> hidden_out [T, C]:
    every token moves by its fresh residual, or by its reference's."""

    def forward(
        self, hidden: Tensor, ref_residual: Tensor, residual: Tensor, places: Tensor
    ) -> Tensor:
        return hidden + placed(ref_residual, residual, places)


class Prune(nn.Module):
    """tokens [n, D], history_mean float32 [P], history_count float32 [1] -> kept [k, D],
    kept_indices int64 [k] ascending, frame_mean float32 [P].

    `history_mean` is the mean of earlier frames' `frame_mean`, `history_count` how many there
    were (0: the mean is not read).
    """

    def __init__(self, scoring: Scoring, count: int) -> None:
        super().__init__()
        self.scoring, self.count = scoring, count

    def forward(
        self, tokens: Tensor, history_mean: Tensor, history_count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = tokens.float()
        if self.scoring == "dual-anchor":
            rank, frame_mean = self.dual_anchor(x, history_mean, history_count)
        else:
            rank, frame_mean = self.gaussian(x, history_mean, history_count)
        lowest = torch.topk(rank, self.count, largest=False, sorted=True).indices
        kept_indices = ascending(lowest, self.count)
        return tokens.index_select(0, kept_indices), kept_indices, frame_mean

    def dual_anchor(self, x: Tensor, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Likeness to both anchors, low = keep: the negated score of the paper, without its
        constant. Without history the temporal anchor is the frame's own mean."""
        spatial = x.mean(0)
        present = count.clamp(max=1.0)
        temporal = present * mean + (1.0 - present) * spatial
        unit = unit_rows(x)
        return unit @ unit_rows(temporal) + unit @ unit_rows(spatial), spatial

    def gaussian(self, x: Tensor, mean: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of kernels to the frame's centre and to the history's mean, low = keep."""
        width = x.shape[1]
        frame_mean = x.mean(0)
        variance = ((x - frame_mean) ** 2).mean(0)
        channels = torch.topk(variance, width // 2, largest=False, sorted=True).indices
        subset = x.index_select(1, channels)
        if self.scoring == "gaussian":
            frame_mean = subset.mean(0)
        anchor = (mean * count + frame_mean) / (count + 1.0)
        if self.scoring == "gaussian-fixed":
            anchor = anchor.index_select(0, channels)
        unit = unit_rows(subset)
        return kernel(unit, unit.mean(0)) + kernel(unit, unit_rows(anchor)), frame_mean


def kernel(tokens: Tensor, anchor: Tensor) -> Tensor:
    """Sum over BANDWIDTHS of exp(-|a - b|^2 / (2 bandwidth)): [n, P], [P] -> [n]."""
    distance = ((tokens - anchor) ** 2).sum(1)
    total = torch.exp(distance * (-0.5 / BANDWIDTHS[0]))
    for bandwidth in BANDWIDTHS[1:]:
        total = total + torch.exp(distance * (-0.5 / bandwidth))
    return total


def unit_rows(x: Tensor) -> Tensor:
    """`x` scaled to length 1 along its last axis."""
    return x / (x * x).sum(-1, keepdim=True).sqrt().clamp(min=LENGTH_EPS)


def ascending(indices: Tensor, count: int) -> Tensor:
    """`indices` sorted, through a float32 TopK: TensorRT has no integer one."""
    return torch.topk(indices.float(), count, largest=False, sorted=True).values.long()
