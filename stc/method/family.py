"""The `stc` family: the graphs of STC-Cacher and STC-Pruner (arXiv 2512.00891), and how frames run
through them.

The one place that says how a frame goes: a reference frame computes every token and leaves keys,
values and residuals behind; a reuse frame computes fresh keys, recomputes the M tokens whose keys
changed most and takes the rest from the references, which it does not change. Each kind of frame is
a Program (`stc.program`); what runs, compares, builds or measures graphs reads those.

Shapes use the alphabet of `stc.contracts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from stc.contracts import COUNT, HIDDEN, HIDDEN_OUT, KEY, VALUE
from stc.manifest import Precision, VisionSpec
from stc.method.cost import attention_macs, embed_macs, key_macs, mlp_macs
from stc.method.graphs import (
    ADD,
    ATTENTION,
    COMPARE,
    EMBED,
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT,
    KEPT_INDICES,
    MERGE,
    PIXEL_VALUES,
    PLACE,
    PLACES,
    PROJECT,
    REF_KEY,
    REF_RESIDUAL,
    REF_VALUE,
    RESIDUAL,
    ROWS,
    SCORE,
    SELECT,
    TOKENS,
    keys_graph,
    memory_width,
    mlp_graph,
    prune_graph,
    reference_graph,
    update_graph,
)
from stc.ports import NETWORK_DTYPES
from stc.program import Arrays, Buffer, Call, Program, Role
from stc.settings import SCORINGS, Scoring, Selection, Settings

FrameKind = Literal["reference", "reuse"]

VISION, PROJECTING, PRUNING = "vision", "project", "prune"
"""What a frame's time is counted as."""


def indices_of(block: int) -> str:
    """The buffer of the tokens that a reuse frame recomputes in block `block`."""
    return f"{INDICES}_{block:02d}"


def frame_program(
    spec: VisionSpec, precision: Precision, settings: Settings, kind: FrameKind
) -> Program:
    """A frame of `kind`, which names it, from PIXEL_VALUES to what is kept of it.

    Its inputs are PIXEL_VALUES and, where not all tokens are kept, HISTORY_MEAN and HISTORY_COUNT;
    its results KEPT, KEPT_INDICES and FRAME_MEAN, else TOKENS, and of a reuse frame the indices of
    block 0. Raises SettingsError for a budget over n.
    """
    kept = settings.kept(spec.pooled)
    writer = _Writer(spec, precision)
    frame = _Frame(
        recomputed=settings.recomputed(spec.tokens) if kind == "reuse" else None,
        selection=settings.selection,
    )
    writer.embed(frame)
    for block in range(spec.blocks):
        writer.block(frame, block)
    if kept == spec.pooled:
        writer.project(frame, "result")
    else:
        writer.project(frame)
        width = memory_width(settings.pruner, spec.language_width)
        mean = writer.buffer(HISTORY_MEAN, (width,), "float32", "input")
        count = writer.buffer(HISTORY_COUNT, (1,), "float32", "input")
        writer.prune(frame, settings.pruner, kept, mean, count, "")
    return writer.program(kind)


def stream_programs(spec: VisionSpec, precision: Precision, settings: Settings) -> list[Program]:
    """The programs of a stream of `settings`, named by their kind of frame; raises as
    `frame_program`."""
    kinds: tuple[FrameKind, ...] = ("reuse", "reference")
    if settings.reference_interval == 1:
        kinds = ("reference",)
    return [frame_program(spec, precision, settings, kind) for kind in kinds]


def check_program(
    spec: VisionSpec,
    precision: Precision,
    recomputed: Sequence[int],
    kept: Sequence[int] = (),
    selection: Selection = "layerwise",
) -> Program:
    """A reference frame and reuse frames of it, one for each M of `recomputed`, block by block.

    Then every pruner keeps each k of `kept` of the first two frames, the second with the first in
    its memory. So every graph runs on what it will see, at every size. The inputs are PIXEL_VALUES
    of the reference frame and CHANGED_PIXELS of the others; the results TOKENS of each frame.
    """
    writer = _Writer(spec, precision)
    frames = [_Frame(None, selection)]
    frames += [_Frame(count, selection, f"{count}.", CHANGED_PIXELS) for count in recomputed]
    for frame in frames:
        writer.embed(frame)
    for block in range(spec.blocks):
        for frame in frames:
            writer.block(frame, block)
    for frame in frames:
        writer.project(frame, "result")
    for scoring in SCORINGS:
        width = memory_width(scoring, spec.language_width)
        for count in kept:
            mean = writer.constant(f"no_mean_{width}", (width,), "float32", 0)
            for seen, frame in enumerate(frames[:2]):
                history = writer.constant(f"history_{seen}", (1,), "float32", seen)
                mark = f"{scoring}.{count}."
                mean = writer.prune(frame, scoring, count, mean, history, mark)
    return writer.program("check")


def prune_program(spec: VisionSpec, precision: Precision, kept: Sequence[int]) -> Program:
    """Every pruner keeps each k of `kept` of TOKENS, without a memory and with one of five frames.

    The inputs are TOKENS and the memories, HISTORY_MEAN of each `memory_width`: `history_of`.
    """
    writer = _Writer(spec, precision)
    shape = spec.pooled, spec.language_width
    frame = _Frame(None, "layerwise", tokens=writer.buffer(TOKENS, shape, role="input"))
    for scoring in SCORINGS:
        width = memory_width(scoring, spec.language_width)
        mean = writer.buffer(history_of(width), (width,), "float32", "input")
        for count in kept:
            for seen in (0, 5):
                history = writer.constant(f"history_{seen}", (1,), "float32", seen)
                writer.prune(frame, scoring, count, mean, history, f"{scoring}.{count}.{seen}.")
    return writer.program("prune")


def history_of(width: int) -> str:
    """The buffer of a memory of `width` channels in `prune_program`."""
    return f"{HISTORY_MEAN}_{width}"


CHANGED_PIXELS = "changed_pixels"
"""Of `check_program`: pixel values of a frame that differs from the reference frame in part."""


def changed_frames(spec: VisionSpec, seed: int = 0) -> Arrays:
    """Inputs of `check_program`: noise, and the same with its upper half changed; float32."""
    random = np.random.default_rng(seed)
    first = random.uniform(-1, 1, spec.pixel_shape).astype(np.float32)
    second = first.copy()
    upper = second[:, : spec.image_height // 2]
    upper[:] = random.uniform(-1, 1, upper.shape)
    return {PIXEL_VALUES: first, CHANGED_PIXELS: second}


def macs(spec: VisionSpec, program: Program) -> int:
    """Multiply-accumulates of the tower's graphs in `program`: the floor under every latency."""
    tokens, total = spec.tokens, 0
    for call in program.calls:
        rows = call.sizes.get("M", tokens)
        # By what it writes: whatever graphs keys and attention are of.
        costs = {
            KEY: key_macs(spec, tokens),
            ATTENTION: attention_macs(spec, rows, tokens),
            RESIDUAL: mlp_macs(spec, rows),
        }
        total += sum(costs.get(port, 0) for port in call.writes)
        total += embed_macs(spec) if call.graph == EMBED else 0
    return total


def frame_macs(spec: VisionSpec, precision: Precision, settings: Settings) -> dict[FrameKind, int]:
    """`macs` of a frame of each kind of a stream of `settings`."""
    programs = {program.name: program for program in stream_programs(spec, precision, settings)}
    kinds: tuple[FrameKind, ...] = get_args(FrameKind)
    return {kind: macs(spec, programs[kind]) for kind in kinds if kind in programs}


@dataclass
class _Frame:
    """A frame on its way: of M `recomputed` tokens, or with all computed and its references kept.

    mark: before the names of its own buffers.
    """

    recomputed: int | None
    selection: Selection
    mark: str = ""
    pixels: str = PIXEL_VALUES
    hidden: str = ""
    tokens: str = ""
    blocks: int = 0

    def other_hidden(self) -> str:
        """The buffer that its next hidden states go to; they alternate between two."""
        self.blocks += 1
        return f"{self.mark}{HIDDEN}_{self.blocks % 2}"


@dataclass
class _Writer:
    """Writes down the calls of frames."""

    spec: VisionSpec
    precision: Precision
    calls: list[Call] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)

    def program(self, name: str) -> Program:
        return Program(name, tuple(self.calls), self.buffers)

    def buffer(
        self, name: str, shape: tuple[int, ...], dtype: str = "", role: Role = "work"
    ) -> str:
        self.buffers.setdefault(name, Buffer(name, shape, dtype or self.network, role))
        return name

    def constant(self, name: str, shape: tuple[int, ...], dtype: str, value: int) -> str:
        self.buffers[name] = Buffer(name, shape, dtype, "constant", value)
        return name

    @property
    def network(self) -> str:
        return str(NETWORK_DTYPES[self.precision])

    @property
    def rows(self) -> tuple[int, ...]:
        return self.spec.tokens, self.spec.width

    def call(
        self, stage: str, graph: str, reads: dict[str, str], writes: dict[str, str], **sizes: int
    ) -> None:
        self.calls.append(Call(graph, reads, writes, stage, sizes))

    def embed(self, frame: _Frame) -> None:
        pixels = self.buffer(frame.pixels, self.spec.pixel_shape, role="input")
        frame.hidden = self.buffer(frame.other_hidden(), self.rows)
        self.call(VISION, EMBED, {PIXEL_VALUES: pixels}, {HIDDEN: frame.hidden})

    def block(self, frame: _Frame, block: int) -> None:
        ref_key, ref_value, ref_residual = (
            self.buffer(f"{name}_{block:02d}", self.rows, role="reference")
            for name in (REF_KEY, REF_VALUE, REF_RESIDUAL)
        )
        before, there = {HIDDEN: frame.hidden}, self.buffer(frame.other_hidden(), self.rows)
        after = {HIDDEN_OUT: there}
        if frame.recomputed is None:
            attention = self.buffer(ATTENTION, self.rows)
            writes = {KEY: ref_key, VALUE: ref_value, ATTENTION: attention}
            self.call(VISION, reference_graph(block), before, writes)
            added = {ROWS: frame.hidden, ATTENTION: attention}
            self.call(VISION, mlp_graph(block), added, {RESIDUAL: ref_residual}, M=self.spec.tokens)
            self.call(VISION, ADD, {**before, RESIDUAL: ref_residual}, after)
        else:
            key = self.buffer(f"{frame.mark}{KEY}", self.rows)
            self.call(VISION, keys_graph(block), before, {KEY: key})
            chosen = self._choice(frame, block, key, ref_key)
            sizes, shape = {"M": frame.recomputed}, (frame.recomputed, self.spec.width)
            rows, attention, residual = (
                self.buffer(f"{frame.mark}{frame.recomputed}_{name}", shape)
                for name in (ROWS, ATTENTION, RESIDUAL)
            )
            added, references = {ROWS: rows, ATTENTION: attention}, {REF_VALUE: ref_value}
            reads = {**before, KEY: key, **references, **chosen}
            self.call(VISION, update_graph(block), reads, added, **sizes)
            self.call(VISION, mlp_graph(block), added, {RESIDUAL: residual}, **sizes)
            old_and_new = {REF_RESIDUAL: ref_residual, RESIDUAL: residual}
            reads = {**before, **old_and_new, PLACES: chosen[PLACES]}
            self.call(VISION, MERGE, reads, after, **sizes)
        frame.hidden = there

    def _choice(self, frame: _Frame, block: int, key: str, ref_key: str) -> dict[str, str]:
        """The buffers of the tokens that a reuse frame recomputes in the block and of the places
        they take, by port."""
        assert frame.recomputed is not None
        layerwise = frame.selection == "layerwise"
        indices = f"{frame.mark}{indices_of(block if layerwise else 0)}"
        if layerwise or block == 0:
            score = self.buffer(f"{frame.mark}{SCORE}", (self.spec.tokens,), "float32")
            self.call(VISION, COMPARE, {KEY: key, REF_KEY: ref_key}, {SCORE: score})
            # Of one block they come to the host; those of all would hold a GPU up.
            role: Role = "choice" if block else "result"
            self.buffer(indices, (frame.recomputed,), "int64", role)
            count = self.constant(f"count_{frame.recomputed}", (1,), "int64", frame.recomputed)
            reads = {SCORE: score, COUNT: count}
            self.call(VISION, SELECT, reads, {INDICES: indices}, M=frame.recomputed)
            places = self.buffer(f"{frame.mark}{PLACES}", (self.spec.tokens,), "int64")
            self.call(VISION, PLACE, {INDICES: indices}, {PLACES: places}, M=frame.recomputed)
        return {INDICES: indices, PLACES: f"{frame.mark}{PLACES}"}

    def project(self, frame: _Frame, role: Role = "work") -> None:
        shape = self.spec.pooled, self.spec.language_width
        frame.tokens = self.buffer(f"{frame.mark}{TOKENS}", shape, role=role)
        self.call(PROJECTING, PROJECT, {HIDDEN: frame.hidden}, {TOKENS: frame.tokens})

    def prune(
        self, frame: _Frame, scoring: Scoring, kept: int, mean: str, count: str, mark: str
    ) -> str:
        """The buffer of the frame's mean."""
        mark, width = f"{mark}{frame.mark}", self.spec.language_width
        role: Role = "work" if mark else "result"
        frame_mean = self.buffer(
            f"{mark}{FRAME_MEAN}", (memory_width(scoring, width),), "float32", role
        )
        self.call(
            PRUNING,
            prune_graph(scoring),
            {
                TOKENS: frame.tokens,
                HISTORY_MEAN: mean,
                HISTORY_COUNT: count,
                COUNT: self.constant(f"count_{kept}", (1,), "int64", kept),
            },
            {
                KEPT: self.buffer(f"{mark}{KEPT}", (kept, width), role=role),
                KEPT_INDICES: self.buffer(f"{mark}{KEPT_INDICES}", (kept,), "int64", role),
                FRAME_MEAN: frame_mean,
            },
            k=kept,
        )
        return frame_mean
