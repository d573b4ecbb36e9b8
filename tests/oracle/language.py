"""The language graphs in numpy: an independent witness, and a decoder without an export.

Written from the contracts of `stc.contracts` and from Qwen2's layers as Hugging Face names their
tensors; matrices keep that orientation, [fan_out, fan_in]. Everything is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.export.demo.tokenizer import demo_tokenizer
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.language.model import LanguageModel
from tests.kept_tokens import MAX_POSITIONS, WIDTH
from tests.oracle.backend import Graph, OracleBackend

Array = NDArray[Any]


class Decoder:
    """Qwen2 of the geometry `spec`; `tensors` by the name that each has in `model.*`."""

    def __init__(self, spec: LanguageSpec, tensors: Mapping[str, Array]) -> None:
        self.spec, self.tensors = spec, tensors

    def model(self, buckets: KvBuckets | None = None) -> LanguageModel:
        """It as a stream runs it."""
        table = self.tensors["embed_tokens.weight"]
        return LanguageModel(LanguageOracle(self), self.spec, "fp32", table, buckets)

    def graphs(self) -> dict[str, Graph]:
        """Every language graph as a function of its inputs in order."""
        graphs: dict[str, Graph] = {
            contracts.TEXT_EMBED: self.text_embed,
            contracts.HEAD: self.head,
        }
        for number in range(self.spec.blocks):
            graphs[contracts.qkv_graph(number)] = lambda *given, n=number: self.qkv(n, *given)
            graphs[contracts.attend_graph(number)] = lambda *given, n=number: self.attend(n, *given)
        graphs[contracts.HEAD] = self.head
        return graphs

    def greedy(self, hidden: Array, count: int) -> list[int]:
        """The likeliest tokens after `hidden` [m, D], at most `count`, everything computed anew
        for each: no row of another call is used.
        """
        given: list[int] = []
        while len(given) < count and not set(given) & set(self.spec.stop_token_ids):
            whole = np.concatenate((hidden, *self.text_embed(np.array(given, np.int64))))
            positions = np.arange(len(whole))
            for number in range(self.spec.blocks):
                query, keys, values = self.qkv(number, whole)
                (whole,) = self.attend(number, whole, query, keys, values, positions, positions)
            given.append(int(self.head(whole[-1:])[0].argmax()))
        return given

    def text_embed(self, ids: Array) -> tuple[Array]:
        """ids int64 [m] -> hidden [m, D]."""
        return (self.tensors["embed_tokens.weight"][ids],)

    def qkv(self, number: int, hidden: Array) -> tuple[Array, Array, Array]:
        """hidden [m, D] -> query [Q, m, e], key and value [G, m, e], before rotary."""
        normed = self._norm(f"layers.{number}.input_layernorm", hidden)
        query, key, value = (
            self._affine(f"layers.{number}.self_attn.{name}_proj", normed)
            .reshape(len(hidden), -1, self.spec.head_width)
            .transpose(1, 0, 2)
            for name in "qkv"
        )
        return query, key, value

    def attend(
        self,
        number: int,
        hidden: Array,
        query: Array,
        keys: Array,
        values: Array,
        query_positions: Array,
        key_positions: Array,
    ) -> tuple[Array]:
        """hidden [m, D] and all rows [G, S, e] -> hidden_out [m, D]."""
        block = f"layers.{number}"
        turned, rows = self._rotate(query, query_positions), self._rotate(keys, key_positions)
        seen = (key_positions >= 0) & (key_positions <= query_positions[:, None])
        group = self.spec.query_heads // self.spec.key_heads
        heads = []
        for head, own in enumerate(turned):
            products = self.products(own, rows[head // group])
            scores = products / np.sqrt(np.float32(self.spec.head_width))
            scores = np.where(seen, scores, -1e9)
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            heads.append(shares @ values[head // group])
        after = hidden + self._affine(f"{block}.self_attn.o_proj", np.concatenate(heads, axis=1))
        normed = self._norm(f"{block}.post_attention_layernorm", after)
        gate = self._affine(f"{block}.mlp.gate_proj", normed)
        active = gate / (1 + np.exp(-gate)) * self._affine(f"{block}.mlp.up_proj", normed)
        return (after + self._affine(f"{block}.mlp.down_proj", active),)

    def products(self, queries: Array, keys: Array) -> Array:
        """Of rotated queries [m, e] and keys [S, e] of a head: [m, S]."""
        found: Array = queries @ keys.T
        return found

    def head(self, hidden: Array) -> tuple[Array]:
        """hidden [1, D] -> logits [1, V]; without a matrix of its own it is the embedding's."""
        weight = self.tensors.get("lm_head.weight", self.tensors["embed_tokens.weight"])
        return (self._norm("norm", hidden) @ weight.T,)

    def _norm(self, name: str, x: Array) -> Array:
        length = np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.spec.rms_norm_eps))
        scaled: Array = x / length * self.tensors[f"{name}.weight"]
        return scaled

    def _affine(self, name: str, x: Array) -> Array:
        product = x @ self.tensors[f"{name}.weight"].T
        shifted: Array = product + self.tensors.get(f"{name}.bias", np.float32(0))
        return shifted

    def _rotate(self, x: Array, positions: Array) -> Array:
        """x [heads, rows, e] turned by the angles of its rows' positions [rows]."""
        half = self.spec.head_width // 2
        frequency = self.spec.rotary_base ** -(np.arange(half, dtype=np.float32) / half)
        angles = positions.astype(np.float32)[:, None] * frequency.astype(np.float32)
        cosine, sine = np.cos(angles), np.sin(angles)
        first, second = x[..., :half], x[..., half:]
        return np.concatenate(
            (first * cosine - second * sine, second * cosine + first * sine), axis=-1
        )


class LanguageOracle(OracleBackend):
    """A decoder in numpy as a backend; see `stc.engines.engine.Backend`."""

    def __init__(self, decoder: Decoder) -> None:
        self._closed = False
        self._contracts = contracts.language_graphs(decoder.spec.blocks)
        self._graphs = decoder.graphs()


@dataclass(frozen=True)
class NumpyCase:
    """A decoder with random weights, and prompts for it."""

    decoder: Decoder
    files: Mapping[str, bytes]

    def language(self, buckets: KvBuckets | None = None) -> LanguageModel:
        """The decoder as a stream runs it."""
        return self.decoder.model(buckets)

    def greedy(self, video: Sequence[Array], question: str, count: int) -> list[int]:
        """The answer to `question` about the kept tokens [k, D] of `video`'s frames."""
        prompt = self.prompt()
        before, after = (
            self.decoder.text_embed(ids)[0] for ids in (prompt.before, prompt.after(question))
        )
        return self.decoder.greedy(np.concatenate((before, *video, after)), count)

    def prompt(self) -> Prompt:
        """The demo tokenizer's and its template's."""
        return Prompt(self.files, self.decoder.spec, Path("numpy"))


@cache
def numpy_case() -> NumpyCase:
    """Four query heads on two key heads, three blocks, every tensor random."""
    tokenizer = demo_tokenizer()
    spec = LanguageSpec(
        width=WIDTH,
        blocks=3,
        query_heads=4,
        key_heads=2,
        head_width=8,
        mlp_width=48,
        vocabulary=tokenizer.vocabulary,
        max_positions=MAX_POSITIONS,
        rotary_base=10_000.0,
        rms_norm_eps=1e-6,
        activation="silu",
        tied_head=True,
        video_token_id=tokenizer.ids["<video>"],
        stop_token_ids=(tokenizer.ids["<|im_end|>"],),
    )
    random = np.random.default_rng(0)
    tensors = {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in _shapes(spec).items()
    }
    return NumpyCase(Decoder(spec, tensors), tokenizer.files)


def _shapes(spec: LanguageSpec) -> dict[str, tuple[int, ...]]:
    queries, keys = spec.query_heads * spec.head_width, spec.key_heads * spec.head_width
    width, mlp = spec.width, spec.mlp_width
    block = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (queries, width),
        "self_attn.q_proj.bias": (queries,),
        "self_attn.k_proj.weight": (keys, width),
        "self_attn.k_proj.bias": (keys,),
        "self_attn.v_proj.weight": (keys, width),
        "self_attn.v_proj.bias": (keys,),
        "self_attn.o_proj.weight": (width, queries),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
    }
    shapes = {"embed_tokens.weight": (spec.vocabulary, width), "norm.weight": (width,)}
    for number in range(spec.blocks):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in block.items()}
    return shapes
