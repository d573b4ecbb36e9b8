"""Files that end before they should: a full card, a broken copy, a recorder that lost its power."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc.errors import VideoError
from stc.runtime.commands import run as run_command
from stc.runtime.video.decoding.declared_size import declared_size, is_cut_off
from stc.runtime.video.file import VideoFile
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame
from tests.as_user import frames_of
from tests.clips import numbered_clip, numbers_of, packets_of, write_clip
from tests.test_video_damage import INVALID, Stumbling

Outcome = CompletedProcess[str]

FAST: dict[str, Any] = {"options": {"movflags": "faststart"}}
DECLARING: dict[str, dict[str, Any]] = {
    "clip.mp4": FAST,
    "clip.mov": FAST,
    "clip.mkv": {},
    "clip.avi": {},
    "clip.wmv": {"codec": "wmv2"},
    "clip.flv": {"codec": "flv"},
}
"""Containers that say how long they are, and how a clip is written into each."""


def detailed_clip(path: Path, **how: Any) -> Path:
    """20 pictures of noise, which are most of the file whatever the container adds."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (20, 48, 64, 3), np.uint8)
    return write_clip(path, noise, **{**DECLARING[path.name], **how})


def cut(path: Path, share: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


def read(path: Path, fps: float | None = None) -> tuple[list[Frame], str | None]:
    """The frames of `path` and why there are no more, None when it ended as it should."""
    with open_video(str(path), fps=fps) as video:
        frames = list(video)
        return frames, None if video.loss is None else str(video.loss)


def run(
    run_main: Callable[..., Outcome], bundle: Path, path: Path, *flags: object
) -> tuple[Outcome, str, int]:
    """The command's outcome, what ended the stream, and how many frames it computed."""
    flags = ("--video", path, "--json", path.parent / "o.json", *flags)
    done = run_main(run_command.main, bundle, *flags)
    document = json.loads((path.parent / "o.json").read_text())
    return done, document["ended_by"], document["summary"]["frames"]


@pytest.mark.parametrize("name", DECLARING)
def test_a_cut_file_is_a_loss_and_keeps_what_was_computed(
    name: str, demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """A copy that stopped at 60%: exit code 2 and the document say so, the overlay is whole."""
    path = cut(detailed_clip(tmp_path / name))
    done, ended_by, frames = run(run_main, demo_bundle, path, "--overlay", tmp_path / "o.mp4")
    assert (done.returncode, ended_by) == (2, "loss")
    assert 3 < frames < 20
    assert f"error: {path}: ended early: {frames} " in done.stderr
    assert frames_of(tmp_path / "o.mp4") == frames
    assert (tmp_path / "o.png").exists()


def test_the_frames_that_are_missing_are_counted(tmp_path: Path) -> None:
    """An MP4 that ends behind its tenth frame."""
    path = numbered_clip(tmp_path, **FAST)
    place, size = packets_of(path)[9]
    path.write_bytes(path.read_bytes()[: place + size])
    told = f"{path}: ended early: 10 of 20 frames; the file is cut off; copy or record it again"
    for fps in (None, 1.0):
        frames, loss = read(path, fps)
        assert numbers_of(frames) == (list(range(10)) if fps is None else [0])
        assert loss == told


def test_a_file_cut_before_its_first_frame_says_so(tmp_path: Path) -> None:
    """Nothing but the header was copied."""
    path = numbered_clip(tmp_path, **FAST)
    path.write_bytes(path.read_bytes()[: packets_of(path)[0][0]])
    with open_video(str(path)) as video, pytest.raises(Exception) as raised:
        next(video)
    assert str(raised.value).startswith(f"{path}: ended early: 0 of 20 frames; ")


RECORDED = ["clip.mp4", "clip.mov"]
"""Containers whose index most recorders write last."""


@pytest.mark.parametrize("share", [0.02, 0.95])
@pytest.mark.parametrize("name", [*RECORDED, *(f"fast {name}" for name in DECLARING)])
def test_a_file_cut_before_its_index_is_told_as_cut(
    name: str, share: float, tmp_path: Path
) -> None:
    """A copy that stopped, of a phone's film or of any other: never "not a video"."""
    *fast, name = name.split()
    path = detailed_clip(tmp_path / name, **({} if fast else {"options": {}}))
    path = cut(path, share)
    try:
        told = read(path)[1]
    except VideoError as error:
        told = str(error)
    assert told is not None
    assert "cut off; " in told or "cut off, " in told


@pytest.mark.parametrize("ends", [0, 4, 12, 200])
@pytest.mark.parametrize("name", RECORDED)
def test_a_file_cut_around_its_index_is_told_as_cut(name: str, ends: int, tmp_path: Path) -> None:
    """The index is missing, or not whole: so many bytes of it are there."""
    path = detailed_clip(tmp_path / name, options={})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4 + ends])
    assert is_cut_off(path)
    told = f"{path}: cut off, and what is left cannot be read; copy or record it again"
    with pytest.raises(VideoError) as raised:
        read(path)
    assert str(raised.value) == told


def test_a_recording_whose_power_was_cut_is_told_as_cut(tmp_path: Path) -> None:
    """The recorder did not come to write how long its pictures are, let alone the index."""
    path = detailed_clip(tmp_path / "clip.mp4", options={})
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat")
    content[at - 4 : at] = bytes(4)
    path.write_bytes(content[: content.index(b"moov") - 4])
    with pytest.raises(VideoError, match="cut off, and what is left cannot be read"):
        read(path)


@pytest.mark.parametrize("head", [b"", b"RIFF\1\0\0\0\0\0"])
def test_a_file_of_endless_parts_is_not_walked_to_its_end(head: bytes) -> None:
    """Boxes of eight bytes, chunks of one: millions of them would take seconds."""
    part = head or b"\0\0\0\x08free"

    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            return super().read(size)

    file = Counted(part * 150_000)
    assert declared_size(file) is None
    assert file.reads < 120_000


@pytest.mark.parametrize("name", [*DECLARING, "clip.ts", "clip.nut", "clip.mpg", "clip.h264"])
def test_a_whole_file_is_no_loss(name: str, tmp_path: Path) -> None:
    """The same files untouched, and containers that say no length."""
    how = DECLARING.get(name, {})
    if name in ("clip.mpg", "clip.h264"):
        how = {"codec": "libx264" if name == "clip.h264" else "mpeg2video", "rate": 25}
    frames, loss = read(numbered_clip(tmp_path, 20, name, **how))
    assert (len(frames), loss) == (20, None)


def test_frames_behind_a_cut_that_were_not_asked_for_are_no_loss(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """`--frames` ends the stream before the cut does."""
    path = numbered_clip(tmp_path, **FAST)
    place, size = packets_of(path)[9]
    path.write_bytes(path.read_bytes()[: place + size])
    done, ended_by, frames = run(run_main, demo_bundle, path, "--frames", 4)
    assert (done.returncode, ended_by, frames) == (0, "frames", 4)


def edited(path: Path, first: int) -> Path:
    """The MP4's edit list set to begin at the stamp `first`, in place."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4 + 8 + 4
    content[at : at + 4] = first.to_bytes(4, "big")
    path.write_bytes(content)
    return path


def fragmented(path: Path) -> Path:
    return numbered_clip(
        path.parent, 20, path.name, options={"movflags": "frag_keyframe+empty_moov"}
    )


def test_an_edit_list_that_skips_frames_is_no_loss(tmp_path: Path) -> None:
    """A phone's trimmed clip: fewer frames are shown than stored."""
    path = edited(numbered_clip(tmp_path, 20, **FAST), 5 * 1024)
    frames, loss = read(path)
    assert 10 <= len(frames) < 20
    assert loss is None


def test_a_fragmented_file_is_whole_or_cut(tmp_path: Path) -> None:
    """What recorders write to survive a power cut: no count, fragment after fragment."""
    path = fragmented(tmp_path / "clip.mp4")
    assert read(path)[1] is None
    frames, loss = read(cut(path, 0.7))
    assert 5 <= len(frames) < 20
    assert loss is not None
    assert f"ended early: {len(frames)} frames; the file is cut off" in loss


def test_uneven_stamps_and_reordered_pictures_are_no_loss(tmp_path: Path) -> None:
    """Variable rates of phones and screens, and B pictures."""
    stamps = [0, 1, 2, 3, 20, 21, 22, 39, 40, 160]
    for name in ("clip.mp4", "clip.mkv"):
        assert read(numbered_clip(tmp_path, 10, name, stamps=stamps))[1] is None
        frames, loss = read(numbered_clip(tmp_path, 20, f"b-{name}", codec="libx264"))
        assert (len(frames), loss) == (20, None)


@pytest.mark.parametrize("name", DECLARING)
def test_bytes_behind_the_end_are_no_loss(name: str, tmp_path: Path) -> None:
    """Cameras pad their files, downloads leave a tail."""
    path = numbered_clip(tmp_path, 20, name, **DECLARING[name])
    path.write_bytes(path.read_bytes() + bytes(5000))
    frames, loss = read(path)
    assert (len(frames), loss) == (20, None)


def test_a_live_recording_that_never_knew_its_size_is_no_loss(tmp_path: Path) -> None:
    """A Matroska file from a pipe."""

    class Pipe(io.RawIOBase):
        content = b""

        def write(self, content: Any) -> int:
            self.content += bytes(content)
            return len(content)

        def writable(self) -> bool:
            return True

    pipe, clip = Pipe(), numbered_clip(tmp_path)
    with av.open(str(clip)) as source, av.open(pipe, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in source.decode(video=0):
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    path = tmp_path / "live.mkv"
    path.write_bytes(pipe.content)
    assert declared_size(io.BytesIO(pipe.content)) is None
    assert read(path)[1] is None
    assert read(cut(path))[1] is None


def test_a_container_whose_rest_is_unreadable_is_a_loss(tmp_path: Path) -> None:
    """A disk with a bad spot behind the eighth frame."""

    class Stuck(Stumbling):
        def demux(self, stream: object) -> Any:
            self.at.add(8)
            return super().demux(stream)

    stuck: Any = Stuck(numbered_clip(tmp_path), INVALID, {8})
    with VideoFile(stuck, "clip.mp4", fps=None) as video:
        assert len(list(video)) == 8
        assert "ended early: 8 of 20 frames; what follows is unreadable" in str(video.loss)


CONTENT: dict[str, bytes] = {}


@pytest.fixture(scope="module", autouse=True)
def written(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("whole")
    for name in DECLARING:
        CONTENT[name] = detailed_clip(folder / name).read_bytes()


@given(st.sampled_from(sorted(DECLARING)), st.floats(0, 1))
def test_the_size_a_file_says_is_its_own_wherever_it_is_cut(name: str, share: float) -> None:
    """Whatever is left of it says how long it was, or nothing."""
    content = CONTENT[name]
    assert declared_size(io.BytesIO(content)) == len(content)
    left = content[: round(share * len(content))]
    said = declared_size(io.BytesIO(left))
    assert said is None or len(left) - 8 < said <= len(content)
    if 4096 <= len(left) < len(content) - 8:
        assert said is not None
        assert said > len(left) or content[len(left) + 4 : len(left) + 8].isalpha()


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"ftyp", b"RIFF", b"\x1a\x45\xdf\xa3", b"FLV"])
)
def test_whatever_a_file_begins_with_its_size_can_be_asked(content: bytes, start: bytes) -> None:
    """Damaged headers end no stream."""
    for before in (b"", bytes(4)):
        size = declared_size(io.BytesIO(before + start + content))
        assert size is None or size >= 0
