"""Damaged video files: what is skipped, counted, and what ends the video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import av.error
import pytest

from stc.errors import VideoError
from stc.runtime.video.file import VideoFile
from stc.runtime.video.open import open_video
from tests.clips import (
    damage,
    numbered_clip,
    numbers_of,
    packets_of,
    read_frames,
)


def test_broken_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    path = damage(numbered_clip(tmp_path), [7, 12])
    with open_video(str(path)) as video:
        frames = list(video)
        assert video.broken == 2
    assert numbers_of(frames) == [k for k in range(20) if k not in (7, 12)]
    assert [frame.index for frame in frames] == list(range(18))


@pytest.mark.parametrize("fps", [None, 10.0])
def test_a_broken_last_frame_hides_no_other(tmp_path: Path, fps: float | None) -> None:
    path = damage(numbered_clip(tmp_path), [17, 18])
    with open_video(str(path), fps=fps) as video:
        assert numbers_of(list(video)) == [*range(17), 19]
        assert video.broken == 2


def test_sparse_sampling_survives_broken_frames(tmp_path: Path) -> None:
    path = damage(numbered_clip(tmp_path), [4, 11])
    assert numbers_of(read_frames(path, 2.0)) == [0, 5, 10, 15]


def test_a_file_cut_off_gives_the_frames_it_has(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path, options={"movflags": "faststart"})
    place, size = packets_of(path)[12]
    path.write_bytes(path.read_bytes()[: place + size])
    assert numbers_of(read_frames(path)) == list(range(13))


def test_a_video_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    path = damage(numbered_clip(tmp_path, 6), range(6))
    with open_video(str(path)) as video:
        with pytest.raises(VideoError, match="none of its frames could be decoded") as raised:
            next(video)
        assert video.broken == 6
        assert "\n" not in str(raised.value)


class Stumbling:
    """A container whose demuxing raises `error` before every packet numbered in `at`."""

    def __init__(self, path: Path, error: Exception, at: set[int]) -> None:
        self.container = av.open(str(path))
        self.error = error
        self.at = at
        self.given = 0
        self.packets = self.container.demux(self.container.streams.video[0])

    def __getattr__(self, name: str) -> object:
        return getattr(self.container, name)

    def demux(self, stream: object) -> Iterator[av.Packet[Any]]:
        while True:
            if self.given in self.at:
                self.at.remove(self.given)
                raise self.error
            packet = next(self.packets, None)
            if packet is None:
                return
            self.given += 1
            yield packet


INVALID = av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
IO_ERROR = av.error.OSError(5, "Input/output error")


def test_unreadable_places_in_a_container_are_read_past(tmp_path: Path) -> None:
    stumbling: Any = Stumbling(numbered_clip(tmp_path), INVALID, set(range(20)))
    with VideoFile(stumbling, "clip.mp4", fps=None) as video:
        assert numbers_of(list(video)) == list(range(20))
        assert video.broken == 20


def test_a_container_that_stays_unreadable_ends(tmp_path: Path) -> None:
    class Stuck(Stumbling):
        def demux(self, stream: object) -> Iterator[av.Packet[Any]]:
            self.at.add(8)
            return super().demux(stream)

    # H.264 holds pictures back to order them; those come, too.
    stuck: Any = Stuck(numbered_clip(tmp_path, codec="libx264"), INVALID, {8})
    with VideoFile(stuck, "clip.mp4", fps=None) as video:
        assert len(list(video)) == 8
        assert 0 < video.broken < 100


def test_a_disk_that_fails_midway_is_an_error(tmp_path: Path) -> None:
    failing: Any = Stumbling(numbered_clip(tmp_path), IO_ERROR, {6})
    with (
        VideoFile(failing, "clip.mp4", fps=None) as video,
        pytest.raises(VideoError, match=r"^clip\.mp4: cannot be read on after \d+ frames \(input"),
    ):
        list(video)
