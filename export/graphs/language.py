"""Writes every language graph of one checkpoint and checks each against torch.

Weights are read, written and checked block by block; the two tables of V rows pass through a few
rows at a time. A chunk of text tokens walks through the blocks as they are written, so every graph
is checked on activations it will see: as a chunk, and as a single token after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stc import contracts
from stc.contracts import (
    ATTEND_CONTRACT,
    HEAD_CONTRACT,
    QKV_CONTRACT,
    TEXT_EMBED_CONTRACT,
    Contract,
)
from stc.errors import ExportError
from stc.export.decoders.qwen2 import decoder
from stc.export.decoders.qwen2.decoder import Decoder
from stc.export.decoders.qwen2.key_rotation import (
    COSINES,
    SINES,
    fuse_key_rotation,
    rotation_tables,
)
from stc.export.decoders.qwen2.modules import Attend, Head, TextEmbed
from stc.export.decoders.qwen2.weights import EMBED, HEAD
from stc.export.graphs.check import GraphCheck
from stc.export.graphs.int4_graphs import Int4Writer
from stc.export.graphs.trace import trace
from stc.export.graphs.vision import FUSED, GraphWriter
from stc.export.graphs.weights_file import Span
from stc.manifest import LanguageSpec

TABLE = "weight"
"""The parameter of `text_embed` and `head` that has V rows."""
STAND_IN_ROWS = 8
"""Rows of the tables that are traced in place of the real ones."""
CHUNK = 12
"""Text tokens that walk through the blocks."""
EMPTY = 8
"""Empty rows among the cached ones."""


def write_language_graphs(
    writer: GraphWriter, model: Decoder, int4: Int4Writer | None = None
) -> None:
    """Every graph of the decoder stands in the writer's folder and equals torch; with `int4` those
    with matrices stand there a second time.

    Raises ExportError naming graph, output and difference.
    """
    spec = model.weights.spec
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, spec.vocabulary, (CHUNK,), generator=generator)
    ids[-1] = spec.vocabulary - 1
    hidden, embedding = _text_embed(writer, model, ids)
    places = torch.randperm(CHUNK + EMPTY, generator=generator)[:CHUNK]
    fused = FusedWriter(writer, spec)
    for block in range(spec.blocks):
        hidden = _block(writer, model, block, hidden, places, fused, int4)
    _head(writer, model, hidden[-1:], embedding, int4)


def _text_embed(writer: GraphWriter, model: Decoder, ids: Tensor) -> tuple[Tensor, Span]:
    """hidden [m, D] of `ids`, and where the embedding lies."""
    weights = model.weights
    stand_in = TextEmbed(STAND_IN_ROWS, weights.spec.width, model.dtype)
    template = trace(stand_in, TEXT_EMBED_CONTRACT, (ids % STAND_IN_ROWS,), writer.free)
    span = writer.weights.add_parts(EMBED, _stored(model, EMBED))
    _give_rows(template, TEXT_EMBED_CONTRACT, weights.spec.vocabulary)
    name = contracts.TEXT_EMBED
    check = writer.finish(name, TEXT_EMBED_CONTRACT, template, {TABLE: span})
    table = SlicedEmbedding(model)
    (hidden,) = check.compare(table, (ids,))
    check.compare(table, (ids[-1:],))
    writer.tick(name)
    return hidden, span


def _block(
    writer: GraphWriter,
    model: Decoder,
    block: int,
    hidden: Tensor,
    places: Tensor,
    fused: FusedWriter,
    int4: Int4Writer | None,
) -> Tensor:
    """hidden [m, D] after the block; its rows are cached at `places`, all others are empty."""
    name = contracts.qkv_graph(block)
    qkv = model.qkv(block)
    tensors = decoder.qkv_tensors(block)
    template = writer.template("qkv", qkv, QKV_CONTRACT, (hidden,))
    check = writer.write(name, qkv, QKV_CONTRACT, (hidden,), kind="qkv", keys=tensors)
    query, key, value = check.compare(qkv, (hidden,))
    check.compare(qkv, (hidden[-1:],))
    if int4 is not None:
        inputs = ((hidden,), (hidden[-1:],))
        int4.write(name, qkv, QKV_CONTRACT, template, inputs, kind="qkv", keys=tensors)
    writer.tick(name)

    name = contracts.attend_graph(block)
    attend = model.attend(block)
    tensors = decoder.attend_tensors(block)
    positions = torch.arange(CHUNK)
    key_positions = torch.full((CHUNK + EMPTY,), -1).index_copy(0, places, positions)
    keys, values = (_cached(rows, places) for rows in (key, value))
    full = (hidden, query, keys, values, positions, key_positions)
    template = fused.template(attend, full)
    check = writer.write(name, attend, ATTEND_CONTRACT, full, kind="attend", keys=tensors)
    (after,) = check.compare(attend, full)
    last = (hidden[-1:], query[:, -1:], keys, values, positions[-1:], key_positions)
    check.compare(attend, last)
    check = fused.write(name, template, tensors)
    for example in (full, last):
        check.compare(attend, example)
    if int4 is not None:
        int4.write(
            name, attend, ATTEND_CONTRACT, template, (full, last), kind="attend", keys=tensors
        )
    if not bool(torch.isfinite(after).all()):
        raise ExportError(name, "NaN or infinite output", "finite numbers", "check the weights")
    writer.tick(name)
    return after


def _head(
    writer: GraphWriter,
    model: Decoder,
    hidden: Tensor,
    embedding: Span,
    int4: Int4Writer | None,
) -> None:
    spec = model.weights.spec
    stand_in = Head(spec, STAND_IN_ROWS, model.dtype)
    template = trace(stand_in, HEAD_CONTRACT, (hidden.to(model.dtype),), writer.free)
    _give_rows(template, HEAD_CONTRACT, spec.vocabulary)
    norm = model.norm()
    table = embedding
    if not spec.tied_head:
        table = writer.weights.add_parts(HEAD, _stored(model, HEAD))
    spans = {TABLE: table, "norm.weight": writer.weights.add(decoder.NORM, norm.weight.numpy())}
    check = writer.finish(contracts.HEAD, HEAD_CONTRACT, template, spans)
    check.compare(SlicedHead(model, norm), (hidden,))
    if int4 is not None:
        parts = (part.numpy() for part in _rounded(model, HEAD))
        int4.write_head(template, norm, parts, hidden)
    writer.tick(contracts.HEAD)


def _stored(model: Decoder, name: str) -> Iterator[NDArray[np.generic]]:
    for part in model.weights.table(name):
        yield part.to(model.dtype).numpy()


def _cached(rows: Tensor, places: Tensor) -> Tensor:
    """`rows` [G, m, e] at `places` of a buffer [G, S, e] that holds zeros elsewhere."""
    buffer = torch.zeros(rows.shape[0], CHUNK + EMPTY, rows.shape[2])
    return buffer.index_copy(1, places, rows)


def _give_rows(template: onnx.ModelProto, contract: Contract, rows: int) -> None:
    """The table of `template`, and the axes V of its outputs, have `rows` rows."""
    for initializer in template.graph.initializer:
        if initializer.name == TABLE:
            initializer.dims[0] = rows
    for value, port in zip(template.graph.output, contract.outputs, strict=True):
        for axis, symbol in zip(value.type.tensor_type.shape.dim, port.shape, strict=True):
            if symbol == "V":
                axis.dim_value = rows


class SlicedEmbedding(nn.Module):
    """`TextEmbed` of a decoder's table, float32, which is never whole in memory."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self._model = model

    def forward(self, ids: Tensor) -> Tensor:
        spec = self._model.weights.spec
        hidden = torch.empty(len(ids), spec.width)
        start = 0
        for part in _rounded(self._model, EMBED):
            here = (ids >= start) & (ids < start + len(part))
            hidden[here] = part[ids[here] - start]
            start += len(part)
        return hidden


class SlicedHead(nn.Module):
    """`Head` of a decoder's table, float32, which is never whole in memory."""

    def __init__(self, model: Decoder, norm: nn.Module) -> None:
        super().__init__()
        self._model, self._norm = model, norm

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self._norm(hidden)
        return torch.cat([normed @ part.T for part in _rounded(self._model, HEAD)], dim=1)


def _rounded(model: Decoder, name: str) -> Iterator[Tensor]:
    """The table `name` in slices as the graph has it, float32."""
    for part in model.weights.table(name):
        yield part.to(model.dtype).float()


class FusedWriter:
    """Writes the `attend` graphs a second time beside those of `writer`, for ONNX Runtime: its own
    operator rotates cached keys, which takes a decoded token a sixth of its time when it is written
    out (docs/log.md). Tables of cosines and sines come to the weights of the portable graphs.
    """

    def __init__(self, writer: GraphWriter, spec: LanguageSpec) -> None:
        self._writer = writer
        self._spec = spec
        self._template: onnx.ModelProto | None = None

    def template(self, module: Attend, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
        """The trace of `module` that graphs for ONNX Runtime are made from: with wide products,
        since its kernels gain nothing by narrow ones."""
        narrow, module.wide = not module.wide, True
        kind = "attend wide" if narrow else "attend"
        wide = self._writer.template(kind, module, ATTEND_CONTRACT, inputs)
        module.wide = not narrow
        return wide

    def write(self, name: str, wide: onnx.ModelProto, keys: Mapping[str, str]) -> GraphCheck:
        """The check of the graph beside the `attend` graph `name`, written with `keys` before;
        `wide` is its `template`."""
        if self._template is None:
            self._template = onnx.ModelProto()
            self._template.CopyFrom(wide)
            fuse_key_rotation(self._template, self._spec)
            for table, values in rotation_tables(self._spec).items():
                self._writer.weights.add(table, values)
        keys = {**keys, COSINES: COSINES, SINES: SINES}
        spans = {parameter: self._writer.weights.span(key) for parameter, key in keys.items()}
        return self._writer.finish(name, ATTEND_CONTRACT, self._template, spans, FUSED)
