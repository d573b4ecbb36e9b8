"""The language graphs as torch modules: one module per contract of `stc.contracts`, no batch axis.

Matrices are stored pre-transposed, as in `stc.export.layers`; only the embedding keeps its rows,
since the head may share them. Norms, rotary, scores, softmax and logits are float32 whatever the
network's dtype.

Knows nothing of checkpoints, ONNX or files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.export.layers import Affine, split_heads
from stc.manifest import LanguageSpec

HIDDEN_SCORE = -1e9
"""Added to the score of a row that a query must not see: exp of it is 0 in float32."""
NARROW = 2.0**-8
"""Factor of float16 products of queries and keys, so that they stay in float16's range."""


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight in float32, given back in x's dtype.

    The weight is float32 itself, so that no cast stands between it and the operator.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide / length * self.weight).to(x.dtype)


class TextEmbed(nn.Module):
    """ids int64 [m] -> hidden [m, D]; the weight is [V, D]."""

    def __init__(self, vocabulary: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width, dtype=dtype), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class QueryKeyValue(nn.Module):
    """hidden [m, D] -> query [Q, m, e], key [G, m, e], value [G, m, e], before rotary."""

    def __init__(self, spec: LanguageSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.query_heads, self.key_heads = spec.query_heads, spec.key_heads
        self.head_width = spec.head_width
        self.norm1 = RmsNorm(spec.width, spec.rms_norm_eps)
        self.query = Affine(spec.width, spec.query_heads * spec.head_width, dtype)
        self.key = Affine(spec.width, spec.key_heads * spec.head_width, dtype)
        self.value = Affine(spec.width, spec.key_heads * spec.head_width, dtype)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm1(hidden)
        return (
            split_heads(self.query(normed), self.query_heads, self.head_width),
            split_heads(self.key(normed), self.key_heads, self.head_width),
            split_heads(self.value(normed), self.key_heads, self.head_width),
        )


class Attend(nn.Module):
    """hidden [m, D], query [Q, m, e], keys [G, S, e], values [G, S, e], query_positions int64 [m],
    key_positions int64 [S] -> hidden_out [m, D].

    A query sees the rows whose position is from 0 to its own; a row of position -1 is empty.
    wide: products of queries and keys are float32 in float16 graphs as well.
    """

    def __init__(self, spec: LanguageSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.wide = dtype != torch.float16
        self.query_heads, self.key_heads = spec.query_heads, spec.key_heads
        self.head_width = spec.head_width
        self.scale = spec.head_width**-0.5
        self.out = Affine(spec.query_heads * spec.head_width, spec.width, dtype, bias=False)
        self.norm2 = RmsNorm(spec.width, spec.rms_norm_eps)
        self.gate = Affine(spec.width, spec.mlp_width, dtype, bias=False)
        self.up = Affine(spec.width, spec.mlp_width, dtype, bias=False)
        self.down = Affine(spec.mlp_width, spec.width, dtype, bias=False)
        self.frequency: Tensor
        half = torch.arange(0, spec.head_width, 2, dtype=torch.float32) / spec.head_width
        self.register_buffer("frequency", spec.rotary_base**-half, persistent=False)

    def forward(
        self,
        hidden: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
    ) -> Tensor:
        attend = self.attend_wide if self.wide else self.attend_fused
        attended = attend(query, keys, values, query_positions, key_positions)
        merged = attended.transpose(0, 1).reshape(-1, self.query_heads * self.head_width)
        after: Tensor = hidden + self.out(merged)
        normed = self.norm2(after)
        mlp: Tensor = self.down(F.silu(self.gate(normed)) * self.up(normed))
        return after + mlp

    def attend_wide(
        self, query: Tensor, keys: Tensor, values: Tensor, query_at: Tensor, key_at: Tensor
    ) -> Tensor:
        """What the queries attend to: [Q, m, e]. Their products with keys are float32."""
        # Keys of Qwen2 are large: in float16 their products lose what softmax tells apart, or
        # leave its range.
        rotated = self.rotate(query.float() * self.scale, query_at)
        # Query heads stand together on the key head they share, so that no key is repeated.
        grouped = rotated.reshape(self.key_heads, -1, self.head_width)
        scores = grouped @ self.rotate(keys.float(), key_at).transpose(1, 2)
        groups = self.query_heads // self.key_heads
        m, rows = query.shape[1], keys.shape[1]
        by_query = scores.reshape(self.query_heads, m, rows)
        shares = torch.softmax(by_query + self.mask(query_at, key_at), dim=-1)
        shares = shares.to(values.dtype).reshape(self.key_heads, groups * m, rows)
        return (shares @ values).reshape(self.query_heads, m, self.head_width)

    def attend_fused(
        self, query: Tensor, keys: Tensor, values: Tensor, query_at: Tensor, key_at: Tensor
    ) -> Tensor:
        """The same as TensorRT's compiler makes one kernel of: rank 4, products in the network's
        dtype, no step between product, mask and softmax that moves scores.

        Products are divided by a power of two, so that those of large keys stay in range.
        """
        rotated = self.rotate(query.float() * (self.scale * NARROW), query_at)
        grouped = rotated.to(values.dtype).reshape(1, self.key_heads, -1, self.head_width)
        turned = self.rotate(keys.float(), key_at).to(values.dtype).unsqueeze(0)
        scores = (grouped @ turned.transpose(2, 3)).float() / NARROW
        groups = self.query_heads // self.key_heads
        mask = self.mask(torch.cat([query_at] * groups), key_at)
        shares = torch.softmax(scores + mask, dim=-1).to(values.dtype)
        attended = shares @ values.unsqueeze(0)
        return attended.reshape(self.query_heads, -1, self.head_width)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x float32 [heads, rows, e] turned by the angles of its rows' positions [rows]."""
        angles = positions.float().unsqueeze(1) * self.frequency
        cosine, sine = torch.cos(angles), torch.sin(angles)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    @staticmethod
    def mask(query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """What is added to scores: 0 where a query sees a row, HIDDEN_SCORE where not: [m, S].

        Arithmetic on float32 positions, exact below 2^24, needs no boolean operator.
        """
        keys = key_positions.float()
        ahead = query_positions.float().unsqueeze(1) - keys.unsqueeze(0)
        unseen = ahead.clamp(-1.0, 0.0) + keys.clamp(-1.0, 0.0)
        return unseen * -HIDDEN_SCORE


class Head(nn.Module):
    """hidden [1, D] -> logits float32 [1, V]; the weight is [V, D], as the embedding's."""

    def __init__(self, spec: LanguageSpec, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = RmsNorm(spec.width, spec.rms_norm_eps)
        self.weight = nn.Parameter(
            torch.empty(vocabulary, spec.width, dtype=dtype), requires_grad=False
        )

    def forward(self, hidden: Tensor) -> Tensor:
        # Exports to a Gemm that reads the weight as it is stored: no transposed copy anywhere.
        return F.linear(self.norm(hidden), self.weight).float()
