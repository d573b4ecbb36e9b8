"""Graph by graph: the bundle and the other side compute the same from equal inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import PIXEL_VALUES
from stc.engines.eager import EngineSide
from stc.method.difference import judged
from stc.method.family import CHANGED_PIXELS, check_program
from stc.method.graphs import vision_ports
from stc.program import Arrays, Call, Side, run_paired
from stc.runtime.parity.report import ParityReport
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings


def compare_graphs(
    tower: VisionTower,
    other: Side,
    frames: tuple[NDArray[np.float32], NDArray[np.float32]],
    settings: Settings,
    report: ParityReport,
    tick: Callable[[], None],
) -> None:
    """Every graph has its rows in `report`, on a reference frame and a reuse frame.

    `frames` are the pixel_values of both; the other side's outputs are the next graph's inputs.
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
    run_paired(program, other, ours, inputs, judge, ended=lambda _: tick())
