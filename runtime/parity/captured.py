"""Captured frames against the same engines enqueued one by one: a CUDA graph changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle, islice

import numpy as np

from stc.contracts import TOKENS
from stc.engines.tensorrt.captured import CapturedRunner
from stc.runtime.parity.report import ParityReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import SELECTIONS, Settings


def captured_frames(settings: Settings) -> int:
    """Frames of each selection until every frame is a replay, and an interval of those."""
    return (CapturedRunner.warm_up_runs + 1) * settings.reference_interval


def compare_captured(
    tower: VisionTower,
    frames: Sequence[Frame],
    settings: Settings,
    report: ParityReport,
    tick: Callable[[], None],
) -> set[str]:
    """`report` has rows for captured frames of both selections, the worst over `frames` in turns.

    Engines, inputs and order are the same on both sides, so choices must be equal. Returns the
    kinds of frame that were replayed from a graph at the end.
    """
    kinds: set[str] = {"reference", "reuse"}
    for selection in SELECTIONS:
        chosen, mode = replace(settings, selection=selection), f"captured {selection}"
        with ExitStack() as open_sessions:
            captured, plain = (StreamSession(tower, chosen, captured=way) for way in (True, False))
            open_sessions.callback(captured.close)
            open_sessions.callback(plain.close)
            for frame in islice(cycle(frames), captured_frames(settings)):
                got, expected = captured.push(frame), plain.push(frame)
                report.chain(mode, TOKENS, expected.tokens, got.tokens)
                for name in ("recomputed", "kept"):
                    ours, theirs = getattr(got, name), getattr(expected, name)
                    report.figure(mode, name, float(np.setxor1d(ours, theirs).size), 0.0)
                tick()
            kinds &= captured.captured
    return kinds
