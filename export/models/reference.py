"""PyTorch running the method on a model's own layers: what a bundle is compared with.

The frame schedule and the tensors kept are those of arXiv 2512.00891, STC-Cacher; the tower's
layers are `stc.export.towers.part.TowerReference`'s, the projector transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionMultiModalProjector,
)

from stc.export.layers import join_heads, load_parameters
from stc.export.models.steps import TorchSteps, residual_of
from stc.export.towers.part import VisionWeights
from stc.manifest import VisionSpec
from stc.method.graphs import ALWAYS
from stc.settings import Selection


class BlockReference(NamedTuple):
    """One block's references: key, value [H, T, d]; residual [T, C]."""

    key: Tensor
    value: Tensor
    residual: Tensor


@dataclass(frozen=True)
class TorchFrame:
    """Outcome of one frame, in numpy.

    hidden: [T, C] after the last block. indices: int64 [M] of every block (all T: reference).
    scores: float32 [T] of every block that was scored; empty on a reference frame.
    """

    hidden: NDArray[np.float32]
    indices: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]


class TorchVision:
    """Tower, projector and pooling of a checkpoint, float32, whole in memory.

    steps: the tower one step of a block at a time, for methods that change what a block does.
    """

    def __init__(self, weights: VisionWeights) -> None:
        self.spec = weights.spec
        self._tower = weights.tower.reference(weights)
        self.steps = TorchSteps(self.spec, self._tower)
        with torch.device("meta"):
            self._projector = LlavaOnevisionMultiModalProjector(_projector_config(self.spec))
        load_parameters(self._projector, weights.projector)
        self._references: list[BlockReference] = []

    @torch.inference_mode()
    def dense(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """hidden [T, C] after the last layer as the tower itself computes it, nothing kept."""
        hidden = self._tower.embed(torch.from_numpy(pixel_values))
        for layer in self._tower.layers:
            hidden = self._tower.dense(layer, hidden)
        return _numpy(hidden)

    @torch.inference_mode()
    def reference(self, pixel_values: NDArray[np.float32]) -> TorchFrame:
        """The frame in full; the references are its own from now on."""
        tower = self._tower
        hidden = tower.embed(torch.from_numpy(pixel_values))
        everything = np.arange(self.spec.tokens)
        self._references = []
        for layer in tower.layers:
            normed = tower.normed(layer, hidden)
            key, value = tower.key(layer, normed), tower.value(layer, normed)
            residual = residual_of(tower, layer, hidden, normed, key, value)
            self._references.append(BlockReference(key, value, residual))
            hidden = hidden + residual
        return TorchFrame(_numpy(hidden), [everything] * self.spec.blocks, [])

    @torch.inference_mode()
    def reuse(
        self,
        pixel_values: NDArray[np.float32],
        recomputed: int,
        selection: Selection,
        forced: Sequence[NDArray[np.int64]] | None = None,
    ) -> TorchFrame:
        """The frame with `recomputed` tokens computed and the rest taken from the references.

        `forced` gives the indices of every block instead of the blocks' own selection; scores
        are computed all the same.
        """
        tower = self._tower
        hidden = tower.embed(torch.from_numpy(pixel_values))
        chosen: list[Tensor] = []
        scores: list[Tensor] = []
        for block, layer in enumerate(tower.layers):
            reference = self._references[block]
            normed = tower.normed(layer, hidden)
            key = tower.key(layer, normed)
            if selection == "layerwise" or not chosen:
                flat, ref_flat = join_heads(key), join_heads(reference.key)
                scores.append(F.cosine_similarity(flat, ref_flat, dim=-1))
                scores[-1][: self.spec.grid.prefix_tokens] = ALWAYS
                lowest = torch.topk(scores[-1], recomputed, largest=False).indices
                chosen.append(lowest.sort().values)
            else:
                chosen.append(chosen[0])
            if forced is not None:
                chosen[-1] = torch.from_numpy(forced[block])
            rows = chosen[-1]
            value = reference.value.clone()
            value[:, rows] = tower.value(layer, normed[rows])
            residual = reference.residual.clone()
            residual[rows] = residual_of(tower, layer, hidden[rows], normed[rows], key, value)
            hidden = hidden + residual
        return TorchFrame(
            _numpy(hidden), [_numpy(rows) for rows in chosen], [_numpy(s) for s in scores]
        )

    @torch.inference_mode()
    def project(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """hidden [T, C] -> tokens [n, D], through transformers' projector; pooled as it pools."""
        patches = torch.from_numpy(hidden[self.spec.grid.prefix_tokens :]).unsqueeze(0)
        return _numpy(self._pooled(self._projector(patches)))

    @torch.inference_mode()
    def pool(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """values [T, any] of the tower's tokens -> [n, any], pooled as the tokens are."""
        return _numpy(self._pooled(torch.from_numpy(values[self.spec.grid.prefix_tokens :])))

    def _pooled(self, patches: Tensor) -> Tensor:
        grid = self.spec.grid
        picture = patches.view(1, grid.rows, grid.columns, -1)
        pooled = F.interpolate(
            picture.permute(0, 3, 1, 2).contiguous(),
            size=(grid.pooled_rows, grid.pooled_columns),
            mode="bilinear",
        )
        return pooled.permute(0, 2, 3, 1).reshape(self.spec.pooled, -1)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.numpy()
    return array


def _projector_config(spec: VisionSpec) -> Any:
    return SimpleNamespace(
        vision_feature_layer=-1,
        vision_config=SimpleNamespace(hidden_size=spec.width),
        text_config=SimpleNamespace(hidden_size=spec.language_width),
        multimodal_projector_bias=spec.projector_bias,
        projector_hidden_act=spec.projector_activation,
    )
