"""Attention is one kernel on every GPU, and a block's kernels and bytes are as few as they were: as
TensorRT-RTX's compiler says without a GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
pytest.importorskip("polygraphy", reason="pip install 'stc[tensorrt-rtx]'")

from stc.contracts import ATTEND_CONTRACT
from stc.engines.library.library import LADDER, Attention
from stc.engines.library.plan import CHUNKS, CONTEXTS
from stc.export.choices import Merge
from stc.export.decoders.qwen2.modules import Attend
from stc.export.made_up.synthetic import random_checkpoint
from stc.export.towers.siglip.tower import Keys, Mlp, Reference, Update
from stc.manifest import LanguageSpec, VisionSpec
from stc.method.graphs import (
    KEYS_CONTRACT,
    MERGE_CONTRACT,
    MLP_CONTRACT,
    REFERENCE_CONTRACT,
    UPDATE_CONTRACT,
)
from tests.layer_list import HalfGraph, half_graph

GPUS = ("sm80", "sm86", "sm89", "sm120")
TOKENS = 729
RECOMPUTED = (182, 364)
"""M of reuse frames as `stc-build` builds it for these GPUs."""
CHUNK = {"m": CHUNKS[0], "S": CONTEXTS[0]}


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


SIZES = {"T": TOKENS, "C": vision_spec().width, "M": 5}


@cache
def update() -> HalfGraph:
    return half_graph(Update(vision_spec(), torch.float16), UPDATE_CONTRACT, SIZES, free=("M",))


@cache
def reference() -> HalfGraph:
    return half_graph(Reference(vision_spec(), torch.float16), REFERENCE_CONTRACT, SIZES)


@cache
def attend() -> HalfGraph:
    spec = language_spec()
    sizes = {"m": 5, "S": 7, "D": spec.width, "e": spec.head_width}
    sizes |= {"Q": spec.query_heads, "G": spec.key_heads}
    return half_graph(Attend(spec, torch.float16), ATTEND_CONTRACT, sizes, free=("m", "S"))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("recomputed", RECOMPUTED)
def test_attention_of_a_reuse_frame_is_one_kernel(
    gpu: str, recomputed: int, tmp_path: Path
) -> None:
    found = update().layers(tmp_path, gpu, {"M": recomputed})
    assert (found.attentions, found.fused) == (1, 1)
    # Nothing writes or reads a score of each pair of tokens.
    assert max(kernel.bytes for kernel in found.kernels) < 4 * 4 * recomputed * TOKENS
    # Rows are gathered: around a scatter whole tensors are copied, in kernels of their own.
    assert len(found.kernels) <= 7


@pytest.mark.parametrize("gpu", GPUS)
def test_attention_of_a_reference_frame_is_one_kernel(gpu: str, tmp_path: Path) -> None:
    found = reference().layers(tmp_path, gpu, {})
    assert (found.attentions, found.fused) == (1, 1)
    assert max(kernel.bytes for kernel in found.kernels) < 4 * 4 * TOKENS * TOKENS
    assert len(found.kernels) <= 7


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_attention_of_a_chunk_is_one_kernel(gpu: str, chunk: int, tmp_path: Path) -> None:
    found = attend().layers(tmp_path, gpu, {**CHUNK, "m": chunk})
    assert (found.attentions, found.fused) == (1, 1)


@pytest.mark.parametrize("gpu", GPUS)
def test_attention_reads_no_input_of_the_graph_as_if_it_were_transposed(
    gpu: str, tmp_path: Path
) -> None:
    """TensorRT 11.2 forgot the strides of such inputs (issue 4826)."""
    for graph, sizes in ((reference(), {}), (update(), {"M": 182}), (attend(), CHUNK)):
        given = {port.name for port in graph.entry.inputs}
        read = graph.attention_reads(tmp_path, gpu, sizes)
        assert len(read) >= 3
        assert not given & read


@pytest.mark.parametrize("attention", LADDER[1:])
@pytest.mark.parametrize("gpu", GPUS)
def test_no_other_rung_of_the_ladder_is_one_kernel(
    gpu: str, attention: Attention, tmp_path: Path
) -> None:
    found = update().layers(tmp_path, gpu, {"M": 182}, attention)
    assert found.fused == 0
    assert max(kernel.bytes for kernel in found.kernels) > 4 * 4 * 182 * TOKENS


@pytest.mark.parametrize("attention", LADDER[1:])
def test_attention_of_a_chunk_can_be_kernels_of_their_own(
    attention: Attention, tmp_path: Path
) -> None:
    assert attend().layers(tmp_path, "sm89", CHUNK, attention).fused == 0


def test_an_mlp_of_all_sizes_holds_its_weights_once(tmp_path: Path) -> None:
    spec = random_checkpoint().spec.model_copy(update={"width": 576, "mlp_width": 2048})
    mlp = half_graph(Mlp(spec, torch.float16), MLP_CONTRACT, {"C": 576, "M": 5}, free=("M",))
    every = tuple({"M": rows} for rows in (*RECOMPUTED, TOKENS))
    weights = 2 * 2 * spec.width * spec.mlp_width
    assert all(weights < size < 1.3 * weights for size in mlp.engine_bytes(tmp_path, "sm86", every))


def test_a_full_size_block_moves_no_more_than_it_did(tmp_path: Path) -> None:
    """On sm86: 11 kernels and 91.7 MB of a reference frame, 13 and 64.3 MB of a reuse frame."""
    spec = random_checkpoint().spec
    sizes = {**SIZES, "C": spec.width}

    def cost(graph: HalfGraph, rows: int | None = None) -> tuple[int, float]:
        kernels = graph.layers(tmp_path, "sm86", {"M": rows} if rows else {}).kernels
        return len(kernels), sum(kernel.bytes for kernel in kernels) / 1e6

    half, free = torch.float16, ("M",)
    mlp = half_graph(Mlp(spec, half), MLP_CONTRACT, sizes, free)
    add = (1, 3 * TOKENS * spec.width * 2 / 1e6)
    whole = [cost(half_graph(Reference(spec, half), REFERENCE_CONTRACT, sizes)), add]
    reuse = [
        cost(half_graph(Keys(spec, half), KEYS_CONTRACT, sizes)),
        cost(half_graph(Update(spec, half), UPDATE_CONTRACT, sizes, free), 182),
        cost(half_graph(Merge(), MERGE_CONTRACT, sizes, free), 182),
    ]
    for parts, rows, kernels, megabytes in ((whole, TOKENS, 12, 95), (reuse, 182, 17, 65)):
        found = [*parts, cost(mlp, rows)]
        assert sum(count for count, _ in found) <= kernels
        assert sum(moved for _, moved in found) <= megabytes
