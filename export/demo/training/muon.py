"""Muon, the optimizer for matrices: the momentum's direction with all singular values alike.

Keller Jordan's method (2024). torch has it, but orthogonalises in bfloat16, which many processors
emulate: a step of this small model would take three times as long.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that brings singular values near 1 fastest."""
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Updates of matrices [rows, columns], Nesterov's momentum; decay is decoupled."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for one in group["params"]:
                if one.grad is not None:
                    alike[one.shape].append(one)
            for shape, some in alike.items():
                updates = torch.stack([self._direction(one, group["momentum"]) for one in some])
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for one, update in zip(some, orthogonal(updates), strict=True):
                    one.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-rate)

    def _direction(self, one: nn.Parameter, momentum: float) -> Tensor:
        assert one.grad is not None
        kept = self.state[one].setdefault("momentum", torch.zeros_like(one))
        kept.lerp_(one.grad, 1 - momentum)
        return one.grad.lerp(kept, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """`matrices` [n, rows, columns] with singular values of about 1, in float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
