"""Attention is one kernel on every GPU, as TensorRT-RTX's compiler says without one."""

from __future__ import annotations

from functools import cache

import onnx
import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")

from stc.contracts import ATTEND_CONTRACT
from stc.engines.library.library import LADDER, Attention
from stc.engines.library.plan import CHUNKS, CONTEXTS
from stc.export.decoders.qwen2.modules import Attend
from stc.export.made_up.synthetic import random_checkpoint
from stc.export.towers.siglip.tower import Reference, Update
from stc.manifest import LanguageSpec, VisionSpec
from stc.method.graphs import REFERENCE_CONTRACT, UPDATE_CONTRACT
from tests.layer_list import half_graph, layers_of

Shapes = dict[str, tuple[int, ...]]
CAPABILITIES = ("SM80", "SM86", "SM89", "SM120")
TOKENS = 729
RECOMPUTED = (182, 364)
"""M of reuse frames as `stc-build` builds it for these GPUs."""


def vision_spec() -> VisionSpec:
    """SigLIP-so400m's tokens and heads, but four of them."""
    spec = random_checkpoint().spec
    assert (spec.tokens, spec.head_width) == (TOKENS, 72)
    return spec.model_copy(update={"width": 288, "heads": 4, "mlp_width": 64})


def language_spec() -> LanguageSpec:
    """Qwen2-0.5b's heads, two to each of two key heads."""
    spec = random_checkpoint().decoder
    assert spec is not None
    return spec.model_copy(update={"width": 256, "query_heads": 4, "key_heads": 2, "mlp_width": 64})


@cache
def update() -> onnx.ModelProto:
    spec = vision_spec()
    sizes = {"T": spec.tokens, "C": spec.width, "M": 5}
    return half_graph(Update(spec, torch.float16), UPDATE_CONTRACT, sizes, free=("M",))


@cache
def reference() -> onnx.ModelProto:
    spec = vision_spec()
    sizes = {"T": spec.tokens, "C": spec.width}
    return half_graph(Reference(spec, torch.float16), REFERENCE_CONTRACT, sizes)


@cache
def attend() -> onnx.ModelProto:
    spec = language_spec()
    sizes = {"m": 5, "S": 7, "D": spec.width, "e": spec.head_width}
    sizes |= {"Q": spec.query_heads, "G": spec.key_heads}
    return half_graph(Attend(spec, torch.float16), ATTEND_CONTRACT, sizes, free=("m", "S"))


def attend_shapes(chunk: int) -> Shapes:
    spec, rows = language_spec(), CONTEXTS[0]
    return {
        "hidden": (chunk, spec.width),
        "query": (spec.query_heads, chunk, spec.head_width),
        "keys": (spec.key_heads, rows, spec.head_width),
        "values": (spec.key_heads, rows, spec.head_width),
        "query_positions": (chunk,),
        "key_positions": (rows,),
    }


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("recomputed", RECOMPUTED)
def test_attention_of_a_reuse_frame_is_one_kernel(capability: str, recomputed: int) -> None:
    layers = layers_of(update(), {"indices": (recomputed,)}, capability)
    assert sum(layer.fused_attention for layer in layers) == 1
    # Nothing writes or reads a score of each pair of tokens.
    assert max(layer.size_bytes for layer in layers) < 4 * 4 * recomputed * TOKENS
    # Rows are gathered: around a scatter whole tensors are copied, in kernels of their own.
    assert len(layers) <= 15


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_of_a_reference_frame_is_one_kernel(capability: str) -> None:
    layers = layers_of(reference(), {}, capability)
    assert sum(layer.fused_attention for layer in layers) == 1
    assert max(layer.size_bytes for layer in layers) < 4 * 4 * TOKENS * TOKENS
    assert len(layers) <= 10


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_attention_of_a_chunk_is_one_kernel(capability: str, chunk: int) -> None:
    layers = layers_of(attend(), attend_shapes(chunk), capability)
    assert sum(layer.fused_attention for layer in layers) == 1


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_attention_reads_no_input_of_the_graph_as_if_it_were_transposed(capability: str) -> None:
    """TensorRT 11.2 forgot the strides of such inputs (issue 4826)."""
    graphs: tuple[tuple[onnx.ModelProto, Shapes], ...] = (
        (reference(), {}),
        (update(), {"indices": (182,)}),
        (attend(), attend_shapes(CHUNKS[0])),
    )
    for model, shapes in graphs:
        given = {value.name for value in model.graph.input}
        layers = layers_of(model, shapes, capability)
        (attention,) = (layer for layer in layers if layer.fused_attention)
        assert not given.intersection(attention.inputs)


@pytest.mark.parametrize("attention", LADDER[1:])
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_other_rung_of_the_ladder_is_one_kernel(capability: str, attention: Attention) -> None:
    layers = layers_of(update(), {"indices": (182,)}, capability, attention)
    assert not any(layer.fused_attention for layer in layers)
    assert max(layer.size_bytes for layer in layers) > 4 * 4 * 182 * TOKENS


@pytest.mark.parametrize("attention", LADDER[1:])
def test_attention_of_a_chunk_can_be_kernels_of_their_own(attention: Attention) -> None:
    layers = layers_of(attend(), attend_shapes(CHUNKS[0]), "SM89", attention)
    assert not any(layer.fused_attention for layer in layers)
