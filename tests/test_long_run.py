"""`stc-run` over thousands of frames with everything it writes: its memory stays flat."""

from __future__ import annotations

import json
import statistics
import time
from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest

from stc.runtime.video.open import open_video
from tests.as_user import CLIP, frames_of, start
from tests.clips import write_clip

FRAMES = 2_000
PARTS = 4


@pytest.mark.slow
def test_the_command_takes_no_more_memory_the_longer_it_runs(
    demo_bundle: Path, tmp_path: Path
) -> None:
    with open_video(str(CLIP)) as video:
        pictures = [frame.rgb for frame in islice(video, 50)]
    clip = write_clip(tmp_path / "long.mp4", islice(cycle(pictures), FRAMES))
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    resident = []
    with start(tmp_path, "stc-run", demo_bundle, "--video", clip, *outputs) as process:
        watched = psutil.Process(process.pid)
        assert process.stderr is not None
        assert "frame 0" in process.stderr.readline()
        while process.poll() is None:
            with watched.oneshot():
                if watched.status() != psutil.STATUS_ZOMBIE:
                    resident.append(watched.memory_info().rss)
            time.sleep(0.1)
        assert process.returncode == 0, process.stderr.read()
    summary = json.loads((tmp_path / "o.json").read_text())["summary"]
    assert summary["frames"] == frames_of(tmp_path / "o.mp4") == FRAMES
    size = len(resident) // PARTS
    parts = [statistics.median(resident[part * size :][:size]) for part in range(PARTS)]
    assert abs(parts[3] - parts[1]) <= 0.01 * parts[1], parts
    # The trend is of equal stretches of the stream.
    trend = summary["trend_ms"]
    assert min(trend[-len(trend) // 4 :]) < 1.5 * min(trend[: len(trend) // 4]), trend
