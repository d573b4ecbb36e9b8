"""A stream may go on for ever: neither memory nor time per frame grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.own_process import run_python


@pytest.mark.parametrize(
    "frames", [2_000, pytest.param(20_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_an_endless_stream_takes_neither_more_memory_nor_more_time(
    demo_bundle: Path, frames: int
) -> None:
    done = run_python("-m", "tests.endless_stream", demo_bundle, frames)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["frames"] == frames
    second, last = figures["rss_bytes"][1], figures["rss_bytes"][3]
    assert abs(last - second) <= 0.01 * second, figures
    assert figures["fastest_ms"][3] < 1.5 * figures["fastest_ms"][1], figures
