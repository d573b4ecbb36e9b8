"""Files with several video streams: the one a viewer would see is read, and told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from subprocess import CompletedProcess

import av
import pytest
from av.video.frame import VideoFrame

from stc.errors import VideoError
from stc.runtime.commands import run as run_command
from stc.runtime.video.open import open_video
from tests.clips import add_cover, number_of, numbered, read_frames, write_sound

Outcome = CompletedProcess[str]
Size = tuple[int, int]

SMALL, LARGE = (64, 48), (320, 240)


def write_streams(path: Path, sizes: Sequence[Size], frames: int = 4) -> Path:
    """A video stream of each size, of whole grey pictures numbered 2, 6, 10 ..."""
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        for index in range(frames):
            for number, (stream, (width, height)) in enumerate(zip(streams, sizes, strict=True)):
                grey = numbered(2 + 4 * number, width=width, height=height)
                frame = VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def mark_default(path: Path, chosen: Sequence[int]) -> Path:
    """The MP4's tracks numbered in `chosen` enabled, which is its mark of default, and no other."""
    content = bytearray(path.read_bytes())
    at = -1
    for number in range(content.count(b"tkhd")):
        at = content.index(b"tkhd", at + 1)
        content[at + 7] = content[at + 7] & ~1 | (number in chosen)
    path.write_bytes(content)
    return path


def make_undecodable(path: Path, number: int) -> Path:
    """The MP4's track numbered `number` given a codec that nobody knows."""
    content = bytearray(path.read_bytes())
    # The sample's name, and the box by which libav would recognise it all the same.
    for known in (b"mp4v", b"esds"):
        at = -1
        for _ in range(number + 1):
            at = content.index(known, at + 1)
        content[at : at + 4] = b"zzzz"
    path.write_bytes(content)
    return path


def read(path: Path) -> tuple[Size, int]:
    """Size of the stream that is read, and which it is."""
    frames = read_frames(path)
    assert len(frames) == 4
    height, width = frames[0].rgb.shape[:2]
    return (width, height), (number_of(frames[0].rgb) - 2) // 4


def test_the_default_stream_is_read_and_not_a_thumbnail_before_it(tmp_path: Path) -> None:
    """An editor that stores a small preview as the first track."""
    path = mark_default(write_streams(tmp_path / "clip.mp4", [SMALL, LARGE]), [1])
    assert read(path) == (LARGE, 1)


def test_the_default_mark_counts_more_than_the_size(tmp_path: Path) -> None:
    """A master kept beside the cut that is meant to be shown."""
    path = mark_default(write_streams(tmp_path / "clip.mp4", [LARGE, SMALL]), [1])
    assert read(path) == (SMALL, 1)


@pytest.mark.parametrize("default", [[0, 1, 2], []])
def test_of_equal_marks_the_largest_is_read(tmp_path: Path, default: list[int]) -> None:
    """Several qualities in one file, none or all of them marked."""
    sizes = [SMALL, LARGE, (160, 120)]
    path = mark_default(write_streams(tmp_path / "clip.mp4", sizes), default)
    assert read(path) == (LARGE, 1)


def test_of_equal_streams_the_first_is_read(tmp_path: Path) -> None:
    """Two cameras in one file, as dash cams record."""
    path = mark_default(write_streams(tmp_path / "clip.mp4", [SMALL, SMALL]), [0, 1])
    assert read(path) == (SMALL, 0)


@pytest.mark.parametrize("name", ["clip.ts", "clip.mkv", "clip.mov"])
def test_other_containers_choose_likewise(tmp_path: Path, name: str) -> None:
    """Broadcasts carry a picture in picture; MPEG-TS marks no default."""
    sizes = [SMALL, LARGE] if name == "clip.ts" else [LARGE, SMALL]
    assert read(write_streams(tmp_path / name, sizes))[0] == LARGE


def test_a_stream_that_cannot_be_decoded_is_passed_over(tmp_path: Path) -> None:
    """A proprietary main track beside a plain preview."""
    path = mark_default(write_streams(tmp_path / "clip.mp4", [LARGE, SMALL]), [0])
    assert read(make_undecodable(path, 0)) == (SMALL, 1)


def test_a_file_of_which_nothing_can_be_decoded_says_so(tmp_path: Path) -> None:
    """The proprietary track alone."""
    path = make_undecodable(write_streams(tmp_path / "clip.mp4", [SMALL]), 0)
    with pytest.raises(VideoError, match="no decoder for its video codec"):
        open_video(str(path))


def test_a_cover_is_named_as_what_it_is(tmp_path: Path) -> None:
    """A song with its cover is no video."""
    path = add_cover(write_sound(tmp_path / "song.aac", "aac"))
    with pytest.raises(VideoError, match="has no video, only a cover picture and audio"):
        open_video(str(path))


def test_the_choice_is_told_where_there_was_one(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """A user who wonders which of two cameras was read."""
    for name, sizes in (("two.mp4", [SMALL, LARGE]), ("one.mp4", [LARGE])):
        path = mark_default(write_streams(tmp_path / name, sizes), [len(sizes) - 1])
        done = run_main(run_command.main, demo_bundle, "--video", path, "--json", "-")
        assert done.returncode == 0
        assert json.loads(done.stdout.splitlines()[-1])["summary"]["frames"] == 4
        told = f"{path}: 2 video streams; number 1, 320x240, is read\n"
        assert (told in done.stderr) == (len(sizes) == 2)
