"""End to end: a stream through the bundle and through another side, dense, layerwise and shared.

Selections are compared by score, not by index: where two tokens score alike up to rounding either
may be taken, and both runs go on from the bundle's choice, so that what is compared afterwards is
arithmetic and not luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray

from stc.contracts import HIDDEN, TOKENS
from stc.method.difference import selection_gap
from stc.runtime.parity.report import ParityReport
from stc.runtime.sides.other import OtherStream, Pixels
from stc.runtime.sides.tower_stream import TowerFrame, TowerStream
from stc.runtime.vision.tower import VisionTower
from stc.settings import SELECTIONS, Settings


def compare_streams(
    tower: VisionTower,
    other: OtherStream,
    frames: Iterable[Pixels],
    settings: Settings,
    report: ParityReport,
    tick: Callable[[], None],
) -> None:
    """`report` has rows for dense, layerwise and shared, the worst over `frames`."""
    frames = list(frames)
    recomputed = settings.recomputed(tower.spec.tokens)
    stream = TowerStream(tower, settings)

    def compare(mode: str, found: TowerFrame, expected: NDArray[Any]) -> None:
        report.chain(mode, HIDDEN, expected, found.hidden)
        report.chain(mode, TOKENS, other.project(expected), found.tokens)
        tick()

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
