"""What a vision tower brings to an export, however its matrices are joined and called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stc.export.layers import Shapes
from stc.manifest import VisionSpec


class VisionWeights(Protocol):
    """What an export reads: a checkpoint, or weights made up on demand."""

    @property
    def name(self) -> str:
        """What the weights are called; no path of this machine."""

    @property
    def spec(self) -> VisionSpec:
        """Geometry and preprocessing."""

    @property
    def tower(self) -> TowerPart:
        """The kind of tower that `vision` has the tensors of."""

    def vision(self, name: str) -> Tensor:
        """The tensor `name` below the vision model, one of `tower.shapes`, as float32 and
        finite."""

    def projector(self, name: str) -> Tensor:
        """The tensor `name` below the projector, such as `linear_1.weight`, as float32 and
        finite."""

    def companions(self) -> dict[str, bytes]:
        """The files that accompany the graphs in a bundle, by name."""


class TowerPart(Protocol):
    """A kind of tower; `stc.export.towers.siglip.tower` is one."""

    def shapes(self, spec: VisionSpec) -> Shapes:
        """Every tensor that the graphs are filled from."""

    def module(self, weights: VisionWeights, graph: str, dtype: torch.dtype) -> nn.Module:
        """The module of `embed`, or of a block's `reference`, `keys`, `update` or `mlp`, filled;
        norms are float32 whatever `dtype`."""

    def stored_as(self, graph: str) -> dict[str, str]:
        """The key under which each parameter of that module stands in the weights file; what has
        one key is one tensor."""

    def reference(self, weights: VisionWeights) -> TowerReference:
        """The tower as its authors wrote it, float32, whole in memory."""


class TowerReference(Protocol):
    """A tower in PyTorch, written without a look at its `TowerPart.module`.

    embed: pixel_values [3, Hpx, Wpx] -> hidden [T, C]. dense: a layer's output. The other methods
    are a layer's steps. `normed` is what queries, keys and values are computed from, [H, tokens, d]
    each; `joined` takes what the heads attended to, [H, tokens, d], through the matrix after them;
    `mlp` is the layer's second half, its norm included, without the sum. All else is
    [tokens, C].
    """

    layers: Sequence[Any]

    def embed(self, pixel_values: Tensor) -> Tensor: ...

    def dense(self, layer: Any, hidden: Tensor) -> Tensor: ...

    def normed(self, layer: Any, hidden: Tensor) -> Tensor: ...

    def query(self, layer: Any, normed: Tensor) -> Tensor: ...

    def key(self, layer: Any, normed: Tensor) -> Tensor: ...

    def value(self, layer: Any, normed: Tensor) -> Tensor: ...

    def joined(self, layer: Any, attended: Tensor) -> Tensor: ...

    def mlp(self, layer: Any, hidden: Tensor) -> Tensor: ...
