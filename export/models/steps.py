"""A tower in PyTorch, one step of a block at a time: what is put between them is up to others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stc.export.towers.part import TowerReference
from stc.manifest import VisionSpec

Array = NDArray[np.float32]


def attention_of(
    tower: TowerReference,
    layer: Any,
    normed: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """What attention adds to the rows `normed` [rows, C], which attend to all of `key` and `value`.

    bias: [keys], added to every query's scores. Attention is torch's fused one, as transformers
    runs it by default.
    """
    query = tower.query(layer, normed)
    mask = None if bias is None else bias.expand(len(normed), -1)
    attended = F.scaled_dot_product_attention(query[None], key[None], value[None], mask)
    return tower.joined(layer, attended[0])


def residual_of(
    tower: TowerReference, layer: Any, hidden: Tensor, normed: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """What the layer adds to the rows `hidden` [rows, C]."""
    attention = attention_of(tower, layer, normed, key, value)
    return attention + tower.mlp(layer, hidden + attention)


class TorchSteps:
    """The blocks of `tower`, by number, on float32 numpy arrays; nothing is kept between calls.

    hidden, normed [rows, C], of as many tokens as the caller has; key, value [H, keys, d].
    """

    def __init__(self, spec: VisionSpec, tower: TowerReference) -> None:
        self.spec = spec
        self._tower = tower

    @torch.inference_mode()
    def embed(self, pixel_values: Array) -> Array:
        """hidden [T, C] before the first block, of pixel_values [3, Hpx, Wpx]."""
        return _numpy(self._tower.embed(torch.from_numpy(pixel_values)))

    @torch.inference_mode()
    def normed(self, block: int, hidden: Array) -> Array:
        """What queries, keys and values are computed from."""
        return _numpy(self._tower.normed(self._tower.layers[block], torch.from_numpy(hidden)))

    @torch.inference_mode()
    def key(self, block: int, normed: Array) -> Array:
        """Keys [H, rows, d] of the rows."""
        return _numpy(self._tower.key(self._tower.layers[block], torch.from_numpy(normed)))

    @torch.inference_mode()
    def value(self, block: int, normed: Array) -> Array:
        """Values [H, rows, d] of the rows."""
        return _numpy(self._tower.value(self._tower.layers[block], torch.from_numpy(normed)))

    @torch.inference_mode()
    def attention(
        self, block: int, normed: Array, key: Array, value: Array, bias: Array | None = None
    ) -> Array:
        """What attention adds to the rows [rows, C]; `bias` [keys] is added to all scores."""
        arrays = (normed, key, value) if bias is None else (normed, key, value, bias)
        tensors = map(torch.from_numpy, arrays)
        return _numpy(attention_of(self._tower, self._tower.layers[block], *tensors))

    @torch.inference_mode()
    def received(self, block: int, normed: Array, key: Array) -> Array:
        """The mean share of attention that each key gets, over heads and the rows: [keys].

        They sum to 1.
        """
        query = self._tower.query(self._tower.layers[block], torch.from_numpy(normed))
        scores = query @ torch.from_numpy(key).mT * self.spec.head_width**-0.5
        return _numpy(scores.softmax(dim=-1).mean(dim=(0, 1)))

    @torch.inference_mode()
    def mlp(self, block: int, hidden: Array) -> Array:
        """What the second half of the block adds to the rows [rows, C], its norm included."""
        return _numpy(self._tower.mlp(self._tower.layers[block], torch.from_numpy(hidden)))


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array
