"""PyTorch running a decoder: transformers' own model, and single graphs as torch modules.

The whole decoder is transformers' Qwen2ForCausalLM with its default attention, so that parity with
it says something about both sides; single graphs are the modules they were traced from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from stc import contracts
from stc.export.decoders.qwen2.decoder import Decoder
from stc.export.decoders.qwen2.weights import EMBED, HEAD, LanguageWeights, whole_table
from stc.export.graphs.language import SlicedEmbedding, SlicedHead
from stc.export.graphs.torch_graphs import TorchGraphs
from stc.manifest import LanguageSpec


def language_graphs_in_torch(weights: LanguageWeights) -> TorchGraphs:
    """The modules of the language graphs of a checkpoint."""
    decoder = Decoder(weights)

    def make(graph: str, _: int) -> nn.Module:
        if graph == contracts.TEXT_EMBED:
            return SlicedEmbedding(decoder)
        if graph == contracts.HEAD:
            return SlicedHead(decoder, decoder.norm())
        block = int(graph.rpartition("_")[2])
        qkv = graph == contracts.qkv_graph(block)
        return decoder.qkv(block) if qkv else decoder.attend(block)

    return TorchGraphs(contracts.language_graphs(weights.spec.blocks), make)


class TorchLanguage:
    """transformers' decoder, float32, whole in memory; its cache is its own."""

    def __init__(self, weights: LanguageWeights) -> None:
        with torch.device("meta"):
            model = Qwen2ForCausalLM(_config(weights.spec))
        _load(model, weights)
        self._model: Any = model.eval()
        self._cache = DynamicCache()

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """hidden [m, D] of text tokens."""
        hidden: Tensor = self._model.get_input_embeddings()(torch.from_numpy(ids))
        array: NDArray[np.float32] = hidden.numpy()
        return array

    @torch.inference_mode()
    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [V] after the last of the tokens `hidden` [m, D], with nothing before them."""
        inputs = torch.from_numpy(hidden)[None]
        result = self._model(inputs_embeds=inputs, use_cache=False, logits_to_keep=1)
        array: NDArray[np.float32] = result.logits[0, -1].numpy()
        return array

    @torch.inference_mode()
    def generate(self, hidden: NDArray[np.float32], most: int) -> list[int]:
        """The first `most` tokens of transformers' greedy answer to `hidden` [m, D]."""
        given = self._model.generate(
            inputs_embeds=torch.from_numpy(hidden)[None],
            attention_mask=torch.ones(1, len(hidden), dtype=torch.long),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        ids: list[int] = given[0].tolist()
        return ids

    def forget(self, kept: int) -> None:
        """The cache holds its first `kept` tokens only."""
        surplus = self._cache.get_seq_length() - kept
        if surplus > 0:
            self._cache.crop(-surplus)

    @torch.inference_mode()
    def prefill(self, hidden: NDArray[np.float32]) -> None:
        """The cache holds the tokens `hidden` [m, D] as well."""
        inputs = torch.from_numpy(hidden)[None]
        self._model.model(inputs_embeds=inputs, past_key_values=self._cache, use_cache=True)

    @torch.inference_mode()
    def decode(self, token: int) -> NDArray[np.float32]:
        """float32 [V] after the text token `token`, which the cache holds as well."""
        result = self._model(
            input_ids=torch.tensor([[token]]), past_key_values=self._cache, use_cache=True
        )
        array: NDArray[np.float32] = result.logits[0, -1].numpy()
        return array


def _config(spec: LanguageSpec) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=spec.vocabulary,
        hidden_size=spec.width,
        intermediate_size=spec.mlp_width,
        num_hidden_layers=spec.blocks,
        num_attention_heads=spec.query_heads,
        num_key_value_heads=spec.key_heads,
        head_dim=spec.head_width,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.rms_norm_eps,
        hidden_act=spec.activation,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rotary_base},
        tie_word_embeddings=spec.tied_head,
    )


def _load(model: nn.Module, weights: LanguageWeights) -> None:
    """Give `model`, made without memory, every parameter, and its rotary frequencies."""
    embedding = nn.Parameter(whole_table(weights, EMBED), requires_grad=False)
    head = embedding
    if not weights.spec.tied_head:
        head = nn.Parameter(whole_table(weights, HEAD), requires_grad=False)
    for full, _ in list(model.named_parameters(remove_duplicate=False)):
        owner_name, _, leaf = full.rpartition(".")
        name = full.removeprefix("model.")
        if name == EMBED:
            parameter = embedding
        elif name == HEAD:
            parameter = head
        else:
            parameter = nn.Parameter(weights.tensor(name), requires_grad=False)
        setattr(model.get_submodule(owner_name), leaf, parameter)
    rotary: Any = model.get_submodule("model.rotary_emb")
    model.model.rotary_emb = type(rotary)(_config(weights.spec))  # type: ignore[union-attr]
