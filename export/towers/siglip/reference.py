"""PyTorch running the same method on transformers' own modules: what a bundle is compared with.

Written against transformers' layers, not against `modules` beside it, so that parity with it
says something about both. Attention is torch's fused one, as transformers runs it by default.
The frame schedule and the tensors kept are those of arXiv 2512.00891, STC-Cacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionModel,
    LlavaOnevisionMultiModalProjector,
)

from stc.export.checkpoint.checkpoint import VisionWeights
from stc.manifest import VisionSpec
from stc.settings import Selection


@dataclass(frozen=True)
class BlockReference:
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
    """Tower, projector and pooling of a checkpoint, float32, whole in memory."""

    def __init__(self, weights: VisionWeights) -> None:
        spec = weights.spec
        self.spec = spec
        config = SiglipVisionConfig(
            hidden_size=spec.width,
            intermediate_size=spec.mlp_width,
            num_hidden_layers=spec.blocks,
            num_attention_heads=spec.heads,
            image_size=spec.image_size,
            patch_size=spec.patch_size,
            hidden_act=spec.activation,
            layer_norm_eps=spec.layer_norm_eps,
            vision_use_head=False,
        )
        with torch.device("meta"):
            model = SiglipVisionModel(config)
            projector = LlavaOnevisionMultiModalProjector(_projector_config(spec))
        self._model: Any = model
        _load(model, weights.vision)
        self._projector = projector
        _load(projector, weights.projector)
        self._layers = list(self._model.encoder.layers)
        self._references: list[BlockReference] = []

    @torch.inference_mode()
    def dense(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """hidden [T, C] after the last layer as transformers computes it, nothing kept."""
        hidden = self._embed(pixel_values).unsqueeze(0)
        for layer in self._layers:
            hidden = layer(hidden, None)
        return _numpy(hidden[0])

    @torch.inference_mode()
    def reference(self, pixel_values: NDArray[np.float32]) -> TorchFrame:
        """The frame in full; the references are its own from now on."""
        hidden = self._embed(pixel_values)
        everything = np.arange(self.spec.tokens)
        self._references = []
        for layer in self._layers:
            normed = layer.layer_norm1(hidden)
            key = self._heads(layer.self_attn.k_proj(normed))
            value = self._heads(layer.self_attn.v_proj(normed))
            attention = self._attend(layer, normed, key, value)
            residual = attention + layer.mlp(layer.layer_norm2(hidden + attention))
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
        hidden = self._embed(pixel_values)
        chosen: list[Tensor] = []
        scores: list[Tensor] = []
        for block, (layer, reference) in enumerate(
            zip(self._layers, self._references, strict=True)
        ):
            normed = layer.layer_norm1(hidden)
            flat = layer.self_attn.k_proj(normed)
            key = self._heads(flat)
            if selection == "layerwise" or not chosen:
                ref_flat = reference.key.transpose(0, 1).reshape(flat.shape)
                scores.append(F.cosine_similarity(flat, ref_flat, dim=-1))
                lowest = torch.topk(scores[-1], recomputed, largest=False).indices
                chosen.append(lowest.sort().values)
            else:
                chosen.append(chosen[0])
            if forced is not None:
                chosen[-1] = torch.from_numpy(forced[block])
            rows = chosen[-1]
            value = reference.value.clone()
            value[:, rows] = self._heads(layer.self_attn.v_proj(normed[rows]))
            attention = self._attend(layer, normed[rows], key, value)
            fresh = attention + layer.mlp(layer.layer_norm2(hidden[rows] + attention))
            residual = reference.residual.clone()
            residual[rows] = fresh
            hidden = hidden + residual
        return TorchFrame(
            _numpy(hidden), [_numpy(rows) for rows in chosen], [_numpy(s) for s in scores]
        )

    @torch.inference_mode()
    def project(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """hidden [T, C] -> tokens [n, D], through transformers' projector and pooling."""
        holder: Any = SimpleNamespace(config=SimpleNamespace(vision_config=self._model.config))
        projected = self._projector(torch.from_numpy(hidden).unsqueeze(0))
        return _numpy(LlavaOnevisionModel.apply_pooling(holder, projected)[0])

    def _embed(self, pixel_values: NDArray[np.float32]) -> Tensor:
        hidden: Tensor = self._model.embeddings(torch.from_numpy(pixel_values).unsqueeze(0))[0]
        return hidden

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(-1, self.spec.heads, self.spec.head_width).transpose(0, 1)

    def _attend(self, layer: Any, normed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self._heads(layer.self_attn.q_proj(normed))
        attended = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        merged = attended.transpose(0, 1).reshape(-1, self.spec.width)
        out: Tensor = layer.self_attn.out_proj(merged)
        return out


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


def _load(module: nn.Module, load: Callable[[str], Tensor]) -> None:
    """Give `module`, made without memory, every parameter by its own name.

    Parameters the tower does not need (the norm after the last block) are left without memory.
    """
    for name, _ in list(module.named_parameters()):
        if name.startswith("post_layernorm"):
            continue
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        setattr(owner, leaf, nn.Parameter(load(name), requires_grad=False))
    for name, buffer in list(module.named_buffers()):
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        if leaf == "position_ids":
            owner.register_buffer(leaf, torch.arange(buffer.shape[-1]).expand((1, -1)), False)
    module.eval()
