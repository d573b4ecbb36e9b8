"""Layers that the graphs of several parts are made of, and how they are filled.

Weights are stored as the graphs store them: matrices pre-transposed, so that `x @ weight + bias`
exports to one MatMul and one Add under the parameter's own name. A module's parameters have the
network's dtype; norms, softmax and cosine always compute in float32.

Knows nothing of checkpoints, ONNX or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stc.method.graphs import ALWAYS, COSINE_EPS

M = TypeVar("M", bound=nn.Module)

Shapes = dict[str, tuple[int, ...]]
"""Tensors by name."""


class Norm(nn.Module):
    """LayerNorm in float32 whatever the input's dtype; weight and bias are always present, and
    float32 themselves, so that no cast stands between them and the operator."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = empty(width, dtype=torch.float32)
        self.bias = empty(width, dtype=torch.float32)
        self.width = width
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), (self.width,), self.weight, self.bias, self.eps)
        return normed.to(x.dtype)


class Affine(nn.Module):
    """`x @ weight + bias`, weight [fan_in, fan_out]."""

    def __init__(self, fan_in: int, fan_out: int, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = empty(fan_in, fan_out, dtype=dtype)
        self.bias = empty(fan_out, dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def split_heads(x: Tensor, heads: int, head_width: int) -> Tensor:
    """[tokens, C] -> [H, tokens, d]."""
    return x.reshape(-1, heads, head_width).transpose(0, 1)


def join_heads(x: Tensor) -> Tensor:
    """[H, tokens, d] -> [tokens, C]."""
    return x.transpose(0, 1).flatten(1)


def likeness(key: Tensor, ref_key: Tensor, prefix_tokens: int) -> Tensor:
    """Cosine of keys [T, C], ALWAYS for prefix tokens: float32 [T]."""
    a, b = key.float(), ref_key.float()
    lengths = (a * a).sum(1) * (b * b).sum(1)
    score = (a * b).sum(1) / lengths.sqrt().clamp(min=COSINE_EPS)
    if not prefix_tokens:
        return score
    _, patches = torch.split(score, [prefix_tokens, len(score) - prefix_tokens])
    return torch.cat([torch.full((prefix_tokens,), ALWAYS), patches])


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis in float32, given back in the input's dtype."""
    return torch.softmax(scores.float(), dim=-1).to(scores.dtype)


def attended(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """What the rows of `query` [M, C], which is scaled, attend to of key and value [T, C], in each
    of `heads`: [M, C].

    Products have a leading axis of 1: TensorRT's compiler makes one kernel of attention of rank 4,
    but of rank 3 only for some GPUs (docs/adr/0019).
    """
    query, key, value = (
        one.reshape(1, -1, heads, one.shape[1] // heads).transpose(1, 2)
        for one in (query, key, value)
    )
    shares = softmax(query @ key.transpose(2, 3))
    return join_heads((shares @ value).squeeze(0))


def placed(old: Tensor, fresh: Tensor, places: Tensor) -> Tensor:
    """`old` [T, C] with `fresh` [M, C] in some rows: row t is row `places`[t] of both, old first.

    Rows are gathered and not scattered: a compiler makes one kernel of what comes before and the
    gather, but copies whole tensors around a scatter.
    """
    return torch.cat([old, fresh]).index_select(0, places)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of gelu."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu": F.gelu,
}
"""Activations by their Hugging Face name."""


def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter to be filled."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


def fill(module: M, names: Mapping[str, str], load: Callable[[str], Tensor]) -> M:
    """`module` with every parameter of `names` loaded; linear weights are transposed."""
    for name, parameter in module.named_parameters():
        if name not in names:
            continue
        tensor = load(names[name])
        linear = tensor.ndim == 2 and name.endswith(".weight")
        parameter.data.copy_(tensor.T if linear else tensor)
    return module.eval()


def linear_shapes(name: str, fan_in: int, fan_out: int, *, bias: bool = True) -> Shapes:
    """The tensors of the linear layer `name` in a file."""
    shapes: Shapes = {f"{name}.weight": (fan_out, fan_in)}
    if bias:
        shapes[f"{name}.bias"] = (fan_out,)
    return shapes


def load_parameters(module: nn.Module, load: Callable[[str], Tensor]) -> None:
    """`module`, made without memory, has every parameter by its own name, and is not trained."""
    for name, _ in list(module.named_parameters()):
        owner_name, _, leaf = name.rpartition(".")
        parameter = nn.Parameter(load(name), requires_grad=False)
        setattr(module.get_submodule(owner_name), leaf, parameter)
    module.eval()
