"""The tower's graphs as torch modules: one module per contract of `stc.contracts`, no batch axis.

Weights are stored as the graphs store them: matrices pre-transposed, so that `x @ weight + bias`
exports to one MatMul and one Add under the parameter's own name. A module's parameters have the
network's dtype; norms, softmax and cosine always compute in float32.

Knows nothing of checkpoints, ONNX or files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.manifest import VisionSpec
from stc.method.cacher import COSINE_EPS


class Norm(nn.Module):
    """LayerNorm in float32 whatever the input's dtype; weight and bias are always present, and
    float32 themselves, so that no cast stands between them and the operator."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = _empty(width, dtype=torch.float32)
        self.bias = _empty(width, dtype=torch.float32)
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), (self.width,), self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class Affine(nn.Module):
    """`x @ weight + bias`, weight [fan_in, fan_out]."""

    def __init__(self, fan_in: int, fan_out: int, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = _empty(fan_in, fan_out, dtype=dtype)
        self.bias = _empty(fan_out, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class Embed(nn.Module):
    """pixel_values [3, Hpx, Wpx] -> hidden [T, C]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch = spec.patch_size
        self.width = spec.width
        self.weight = _empty(spec.width, 3, spec.patch_size, spec.patch_size, dtype=dtype)
        self.bias = _empty(spec.width, dtype=dtype)
        self.position = _empty(spec.tokens, spec.width, dtype=dtype)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = F.conv2d(pixel_values.unsqueeze(0), self.weight, self.bias, stride=self.patch)
        return patches.reshape(self.width, -1).transpose(0, 1) + self.position


class Keys(nn.Module):
    """hidden [T, C], ref_key [H, T, d] -> key [H, T, d], score float32 [T]."""

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_width = spec.heads, spec.head_width
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.key = Affine(spec.width, spec.width, dtype)

    def forward(self, hidden: Tensor, ref_key: Tensor) -> tuple[Tensor, Tensor]:
        key = split_heads(self.key(self.norm1(hidden)), self.heads, self.head_width)
        return key, cosine(key, ref_key)


class Select(nn.Module):
    """score float32 [T] -> indices int64 [M], the M lowest, ascending."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, score: Tensor) -> Tensor:
        lowest = torch.topk(score, self.count, largest=False, sorted=True).indices
        return ascending(lowest, self.count)


class Update(nn.Module):
    """One block on the M tokens of `indices`; the others are the reference's.

    hidden [T, C], key [H, T, d], ref_value [H, T, d], ref_residual [T, C], indices int64 [M]
    -> hidden_out [T, C], value [H, T, d], residual [T, C].
    """

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_width = spec.heads, spec.head_width
        self.tokens, self.width = spec.tokens, spec.width
        self.scale = spec.head_width**-0.5
        self.activation = ACTIVATIONS[spec.activation]
        self.norm1 = Norm(spec.width, spec.layer_norm_eps)
        self.query = Affine(spec.width, spec.width, dtype)
        self.value = Affine(spec.width, spec.width, dtype)
        self.out = Affine(spec.width, spec.width, dtype)
        self.norm2 = Norm(spec.width, spec.layer_norm_eps)
        self.fc1 = Affine(spec.width, spec.mlp_width, dtype)
        self.fc2 = Affine(spec.mlp_width, spec.width, dtype)

    def forward(
        self, hidden: Tensor, key: Tensor, ref_value: Tensor, ref_residual: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = hidden.index_select(0, indices)
        normed = self.norm1(rows)
        query = split_heads(self.query(normed) * self.scale, self.heads, self.head_width)
        fresh = split_heads(self.value(normed), self.heads, self.head_width)
        value = self.replace_rows(ref_value, indices, fresh)
        attended = (softmax(query @ key.transpose(1, 2)) @ value).transpose(0, 1)
        attention = self.out(attended.reshape(-1, self.width))
        mlp = self.fc2(self.activation(self.fc1(self.norm2(rows + attention))))
        residual = ref_residual.index_copy(0, indices, attention + mlp)
        return hidden + residual, value, residual

    def replace_rows(self, ref_value: Tensor, indices: Tensor, fresh: Tensor) -> Tensor:
        """`ref_value` [H, T, d] with the rows of `indices` replaced, as whole rows of [H*T, d]:
        a scatter along the leading axis moves rows of d, not single elements."""
        first = torch.arange(self.heads, device=indices.device).unsqueeze(1) * self.tokens
        rows = (first + indices.unsqueeze(0)).reshape(-1)
        flat = ref_value.reshape(self.heads * self.tokens, self.head_width)
        merged = flat.index_copy(0, rows, fresh.reshape(-1, self.head_width))
        return merged.reshape(self.heads, self.tokens, self.head_width)


class Project(nn.Module):
    """hidden [T, C] -> tokens [n, D]: projector, then bilinear pooling to half the side.

    The pooling's weights sum to 1 for every token, so it commutes with the projector's second
    matrix; it stands before it, where it has n tokens to multiply instead of T.
    """

    def __init__(self, spec: VisionSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[spec.projector_activation]
        self.linear_1 = Affine(spec.width, spec.language_width, dtype, bias=spec.projector_bias)
        self.linear_2 = Affine(
            spec.language_width, spec.language_width, dtype, bias=spec.projector_bias
        )
        self.pooling = nn.Parameter(
            pooling_matrix(spec.side, spec.pooled_side).to(dtype), requires_grad=False
        )

    def forward(self, hidden: Tensor) -> Tensor:
        tokens: Tensor = self.linear_2(self.pooling @ self.activation(self.linear_1(hidden)))
        return tokens


def split_heads(x: Tensor, heads: int, head_width: int) -> Tensor:
    """[tokens, C] -> [H, tokens, d]."""
    return x.reshape(-1, heads, head_width).transpose(0, 1)


def cosine(key: Tensor, ref_key: Tensor) -> Tensor:
    """Cosine over all of C, from [H, T, d] caches: float32 [T]."""
    a, b = key.float(), ref_key.float()
    dot = (a * b).sum(2).sum(0)
    lengths = (a * a).sum(2).sum(0) * (b * b).sum(2).sum(0)
    return dot / lengths.sqrt().clamp(min=COSINE_EPS)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis in float32, given back in the input's dtype."""
    return torch.softmax(scores.float(), dim=-1).to(scores.dtype)


def ascending(indices: Tensor, count: int) -> Tensor:
    """`indices` sorted, through a float32 TopK: TensorRT has no integer one."""
    return torch.topk(indices.float(), count, largest=False, sorted=True).values.long()


def pooling_matrix(side: int, pooled_side: int) -> Tensor:
    """Bilinear resize (align_corners False) side x side -> pooled x pooled: float32 [n, T]."""
    identity = torch.eye(side * side).reshape(side * side, 1, side, side)
    pooled = F.interpolate(identity, size=(pooled_side, pooled_side), mode="bilinear")
    return pooled.reshape(side * side, -1).transpose(0, 1).contiguous()


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of gelu."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu": F.gelu,
}
"""Activations by their Hugging Face name."""


def _empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
