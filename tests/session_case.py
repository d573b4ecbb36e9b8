"""A small tower, settings, and what becomes of frames pushed through a session."""

from __future__ import annotations

import numpy as np

from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.vision_cases import made_up

WEIGHTS = made_up(image_size=20)
"""25 tokens, 9 after pooling, 2 blocks."""
SETTINGS = Settings(
    reference_interval=3, recompute_ratio=0.3, selection="layerwise", budget=4, anchor_window=2
)


def pushed(tower: VisionTower, settings: Settings, frames: list[Frame]) -> list[FrameReport]:
    """The reports of `frames`, pushed through a new session."""
    session = StreamSession(tower, settings)
    return [session.push(frame) for frame in frames]


def assert_equal(got: FrameReport, expected: FrameReport) -> None:
    """Two reports say the same, but for times and the frame's number."""
    assert got.kind == expected.kind
    np.testing.assert_array_equal(got.recomputed, expected.recomputed)
    np.testing.assert_array_equal(got.kept, expected.kept)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
