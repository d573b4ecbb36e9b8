"""End to end: a stream through the bundle and through PyTorch, dense, layerwise and shared.

Selections are compared by score, not by index: where two tokens score alike up to rounding either
may be taken, and both runs go on from the bundle's choice, so that what is compared afterwards is
arithmetic and not luck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.contracts import HIDDEN, TOKENS
from stc.difference import selection_gap
from stc.runtime.parity import ParityReport
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import SELECTIONS, Selection, Settings

Pixels = NDArray[np.float32]


class TorchOutcome(Protocol):
    """See `stc.export.reference.TorchFrame`."""

    hidden: NDArray[np.float32]
    scores: list[NDArray[np.float32]]


class TorchStream(Protocol):
    """See `stc.export.reference.TorchVision`."""

    def dense(self, pixel_values: Pixels) -> NDArray[np.float32]: ...

    def reference(self, pixel_values: Pixels) -> Any: ...

    def reuse(
        self,
        pixel_values: Pixels,
        recomputed: int,
        selection: Selection,
        forced: list[NDArray[np.int64]] | None = None,
    ) -> Any: ...

    def project(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...


def compare_streams(
    tower: VisionTower,
    torch_stream: TorchStream,
    frames: Iterable[Pixels],
    settings: Settings,
    report: ParityReport,
    tick: Callable[[], None],
) -> None:
    """`report` has rows for dense, layerwise and shared, the worst over `frames`."""
    frames = list(frames)
    vision = StreamVision(tower)
    for pixels in frames:
        _compare(
            tower,
            "dense",
            vision.reference(_as(tower, pixels)),
            torch_stream.dense(pixels),
            torch_stream,
            report,
        )
        tick()
    for selection in SELECTIONS:
        chosen = replace(settings, selection=selection)
        for index, pixels in enumerate(frames):
            _frame(tower, vision, torch_stream, pixels, index, chosen, report)
            tick()


def _frame(
    tower: VisionTower,
    vision: StreamVision,
    torch_stream: TorchStream,
    pixels: Pixels,
    index: int,
    settings: Settings,
    report: ParityReport,
) -> None:
    mode: str = settings.selection
    if settings.is_reference(index):
        hidden = vision.reference(_as(tower, pixels))
        outcome = torch_stream.reference(pixels)
    else:
        recomputed = settings.recomputed(tower.spec.tokens)
        hidden, chosen = vision.reuse(_as(tower, pixels), recomputed, settings.selection)
        forced = [tower.backend.to_host(indices) for indices in chosen]
        outcome = torch_stream.reuse(pixels, recomputed, settings.selection, forced)
        for score, indices in zip(outcome.scores, forced, strict=False):
            report.selection(mode, "indices", selection_gap(score, indices))
    _compare(tower, mode, hidden, outcome.hidden, torch_stream, report)


def _compare(
    tower: VisionTower,
    mode: str,
    hidden: Any,
    expected: NDArray[np.float32],
    torch_stream: TorchStream,
    report: ParityReport,
) -> None:
    backend = tower.backend
    tokens = tower.project({HIDDEN: hidden})[TOKENS]
    report.chain(mode, HIDDEN, expected, backend.to_host(hidden))
    report.chain(mode, TOKENS, torch_stream.project(expected), backend.to_host(tokens))


def _as(tower: VisionTower, pixels: Pixels) -> NDArray[Any]:
    return pixels.astype(tower.dtype)
