"""The tower: graph by graph, and streams through the bundle and another side in every mode.

Selections are compared by score, not by index: where two tokens score alike up to rounding either
may be taken, and both runs go on from the bundle's choice, so that what is compared afterwards is
arithmetic and not luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import HIDDEN
from stc.engines.eager import EngineSide
from stc.engines.tensorrt.captured import CapturedRunner
from stc.method.difference import judged, selection_gap
from stc.method.family import CHANGED_PIXELS, check_program
from stc.method.graphs import PIXEL_VALUES, TOKENS, vision_ports
from stc.program import Arrays, Call, Side, run_paired
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.sides import Pixels, TowerFrame, TowerStream
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import SELECTIONS, Settings

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision


def compare_streams(
    tower: VisionTower,
    other: TorchVision | TowerStream,
    frames: Sequence[Pixels],
    settings: Settings,
    report: ParityReport,
) -> None:
    """`report` has rows for dense, layerwise and shared, the worst over `frames`."""
    recomputed = settings.recomputed(tower.spec.tokens)
    stream = TowerStream(tower, settings)

    def compare(mode: str, found: TowerFrame, expected: NDArray[Any]) -> None:
        report.chain(mode, HIDDEN, expected, found.hidden)
        report.chain(mode, TOKENS, other.project(expected), found.tokens)
        report.tick()

    for pixels in frames:
        compare("dense", stream.reference(pixels), other.dense(pixels))
    for selection in SELECTIONS:
        for index, pixels in enumerate(frames):
            if settings.is_reference(index):
                compare(selection, stream.reference(pixels), other.reference(pixels).hidden)
                continue
            found = stream.reuse(pixels, recomputed, selection)
            outcome = other.reuse(pixels, recomputed, selection, found.indices)
            for score, indices in zip(outcome.scores, found.indices, strict=False):
                report.selection(selection, "indices", selection_gap(score, indices))
            compare(selection, found, outcome.hidden)


def compare_graphs(
    tower: VisionTower,
    other: Side,
    frames: tuple[Pixels, Pixels],
    settings: Settings,
    report: ParityReport,
) -> None:
    """Every graph has its rows in `report`, on a reference frame and a reuse frame.

    The other side's outputs are the next graph's inputs.
    """
    spec, precision = tower.spec, tower.precision
    recomputed, kept = settings.recomputed(spec.tokens), settings.kept(spec.pooled)
    program = check_program(spec, precision, (recomputed,), (kept,))
    ours = EngineSide(tower.backend, vision_ports(spec, precision), tower.engine)

    def judge(call: Call, inputs: Arrays, expected: Arrays, got: Arrays) -> None:
        for one in judged(call.graph, inputs, expected, got):
            if one.gap is None:
                report.graph(call.graph, one.output, one.expected, one.got)
            else:
                report.selection(call.graph, one.output, one.gap)

    first, second = frames
    inputs: dict[str, NDArray[Any]] = {PIXEL_VALUES: first, CHANGED_PIXELS: second}
    run_paired(program, other, ours, inputs, judge, ended=lambda _: report.tick())


def captured_frames(settings: Settings) -> int:
    """Frames of each selection until every frame is a replay, and an interval of those."""
    return (CapturedRunner.warm_up_runs + 1) * settings.reference_interval


def compare_captured(
    tower: VisionTower, frames: Sequence[Frame], settings: Settings, report: ParityReport
) -> set[str]:
    """`report` has rows for frames captured as CUDA graphs and run engine by engine, in turns.

    Engines, inputs and order are the same on both sides, so choices must be equal. Returns the
    kinds of frame that were replayed from a graph at the end.
    """
    kinds: set[str] = {"reference", "reuse"}
    for selection in SELECTIONS:
        chosen, mode = replace(settings, selection=selection), f"captured {selection}"
        with (
            closing(StreamSession(tower, chosen)) as captured,
            closing(StreamSession(tower, chosen, captured=False)) as plain,
        ):
            for frame in islice(cycle(frames), captured_frames(settings)):
                got, expected = captured.push(frame), plain.push(frame)
                report.chain(mode, TOKENS, expected.tokens, got.tokens)
                for name in ("recomputed", "kept"):
                    ours, theirs = getattr(got, name), getattr(expected, name)
                    report.figure(mode, name, float(np.setxor1d(ours, theirs).size), 0.0)
                report.tick()
            kinds &= captured.captured
    return kinds
