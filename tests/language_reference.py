"""ReKV written straight from its description on transformers' layers, one page at a time.

Nothing is preallocated, retrieved rows are concatenated, and every step of an answer runs question
and answer anew; positions are counted, never computed from rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

Page = tuple[Tensor, Tensor]
"""Un-rotated keys and values [G, tokens, e] of one block."""


class ReferenceRekv:
    """The first tokens `before`, every page ever seen, and which of them a frame still sees."""

    def __init__(self, model: Any, before: NDArray[np.int64], *, window: int, top: int) -> None:
        self.model = model
        self.decoder = model.model.language_model
        self.window, self.top = window, top
        self.blocks = list(self.decoder.layers)
        self.pages: list[list[Page]] = [[] for _ in self.blocks]
        self.first: list[Page] = []
        hidden = self.embed(before)
        for layer in self.blocks:
            query, page = self.project(layer, hidden)
            self.first.append(page)
            hidden = self.attend(layer, hidden, query, [page])

    def embed(self, ids: NDArray[np.int64] | list[int]) -> Tensor:
        """[tokens, D]."""
        embedded: Tensor = self.decoder.embed_tokens(torch.tensor(list(ids)))
        return embedded

    @torch.inference_mode()
    def frame(self, tokens: NDArray[np.float32]) -> None:
        """The page of `tokens` [k, D] follows; it sees the last `window` pages, itself included."""
        hidden = torch.from_numpy(tokens)
        for layer, first, pages in zip(self.blocks, self.first, self.pages, strict=True):
            query, page = self.project(layer, hidden)
            pages.append(page)
            hidden = self.attend(layer, hidden, query, [first, *pages[-self.window :]])

    @torch.inference_mode()
    def answer(
        self, ids: NDArray[np.int64], count: int, sought: NDArray[np.int64] | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """`count` tokens chosen greedily, and the pages every block retrieved for `sought`, None
        for `ids`."""
        chosen = self.retrieve(self.embed(ids if sought is None else sought))
        given: list[int] = []
        for _ in range(count):
            hidden = self.embed([*ids, *given])
            for layer, first, pages, numbers in zip(
                self.blocks, self.first, self.pages, chosen, strict=True
            ):
                query, own = self.project(layer, hidden)
                seen = [first, *(pages[number] for number in numbers), own]
                hidden = self.attend(layer, hidden, query, seen)
            logits = self.model.lm_head(self.decoder.norm(hidden[-1:]))[0]
            given.append(int(logits.argmax()))
        return given, chosen

    def retrieve(self, hidden: Tensor) -> list[list[int]]:
        """Per block the numbers of the pages of highest score, in order of time."""
        chosen = []
        for layer, first, pages in zip(self.blocks, self.first, self.pages, strict=True):
            query, own = self.project(layer, hidden)
            mean = query.mean(1)
            scores = []
            for keys, _ in pages:
                representative = keys.mean(1).repeat_interleave(len(mean) // len(keys), 0)
                scores.append(float((mean * representative).sum()))
            ranked = sorted(range(len(pages)), key=lambda number: -scores[number])
            chosen.append(sorted(ranked[: self.top]))
            seen = [first, *(pages[number] for number in chosen[-1]), own]
            hidden = self.attend(layer, hidden, query, seen)
        return chosen

    def project(self, layer: Any, hidden: Tensor) -> tuple[Tensor, Page]:
        """Query [Q, tokens, e] and the page of `hidden`, un-rotated."""
        normed, attention = layer.input_layernorm(hidden), layer.self_attn

        def heads(x: Tensor) -> Tensor:
            return x.view(len(hidden), -1, attention.head_dim).transpose(0, 1)

        return heads(attention.q_proj(normed)), (
            heads(attention.k_proj(normed)),
            heads(attention.v_proj(normed)),
        )

    def attend(self, layer: Any, hidden: Tensor, query: Tensor, seen: list[Page]) -> Tensor:
        """hidden after the block; the last of `seen` are the rows of `hidden` itself."""
        keys, values = (torch.cat(parts, 1) for parts in zip(*seen, strict=True))
        rows, own = keys.shape[1], len(hidden)
        cosine, sine = self.decoder.rotary_emb(hidden, torch.arange(rows)[None])
        rotated_keys, _ = apply_rotary_pos_emb(keys[None], keys[None], cosine, sine)
        rotated, _ = apply_rotary_pos_emb(
            query[None], query[None], cosine[:, -own:], sine[:, -own:]
        )
        groups = len(query) // len(keys)
        scores = rotated[0] @ rotated_keys[0].repeat_interleave(groups, 0).transpose(1, 2)
        causal = torch.ones(own, rows, dtype=torch.bool).tril(rows - own)
        scores = (scores * query.shape[2] ** -0.5).masked_fill(~causal, float("-inf"))
        attended = torch.softmax(scores, -1) @ values.repeat_interleave(groups, 0)
        merged = attended.transpose(0, 1).reshape(own, -1)
        hidden = hidden + layer.self_attn.o_proj(merged)
        after: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return after
