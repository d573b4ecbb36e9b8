"""Video files: what is sampled, what survives damage, and what is refused with one line."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import av
import av.error
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stc.errors import SettingsError, StcError, VideoError
from stc.runtime.frame import Frame
from stc.runtime.video import open_video
from stc.runtime.video_clock import Clock
from stc.runtime.video_decoder import Decoder
from stc.runtime.video_errors import reason, unreadable
from stc.runtime.video_file import VideoFile
from stc.runtime.video_sampler import Sampler, expected_frames
from tests.clips import (
    add_cover,
    damage,
    number_of,
    numbered,
    packets_of,
    turn,
    write_clip,
    write_sound,
)

DATA = Path(__file__).parent / "data"
STREET = DATA / "street.mp4"


def read(source: Path | str, fps: float | None = None) -> list[Frame]:
    with open_video(str(source), fps=fps) as video:
        return list(video)


def clip(folder: Path, count: int = 20, name: str = "clip.mp4", **how: Any) -> Path:
    return write_clip(folder / name, (numbered(k) for k in range(count)), **how)


def numbers(frames: list[Frame]) -> list[int]:
    return [number_of(frame.rgb) for frame in frames]


# Sampling.


def test_a_file_gives_every_frame_in_order(tmp_path: Path) -> None:
    frames = read(clip(tmp_path))
    assert numbers(frames) == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.time_s for frame in frames] == pytest.approx([k / 10 for k in range(20)])


@pytest.mark.parametrize(
    ("fps", "taken"),
    [
        (5.0, range(200)),
        (2.5, range(0, 200, 2)),
        (2.0, [math.ceil(k * 2.5) for k in range(80)]),
        (1.0, range(0, 200, 5)),
        (0.5, range(0, 200, 10)),
        (0.01, [0]),
        (1e-320, [0]),
        (30.0, range(200)),
        (1e308, range(200)),
    ],
)
def test_sampling_takes_the_first_frame_at_or_after_each_target(
    fps: float, taken: list[int]
) -> None:
    frames = read(STREET, fps)
    assert [round(frame.time_s * 5) for frame in frames] == list(taken)
    assert [frame.index for frame in frames] == list(range(len(taken)))


@pytest.mark.parametrize("fps", [None, 0.3, 1.0, 2.0, 4.0, 5.0, 7.0])
def test_frames_expected_are_the_frames_that_come(fps: float | None) -> None:
    with open_video(str(STREET), fps=fps) as video:
        assert video.rate == 5.0
        assert not video.is_live
        assert video.frames_expected == len(list(video))


def test_frames_expected_are_unknown_without_a_count() -> None:
    assert expected_frames(None, 5.0, None) is None
    assert expected_frames(None, 5.0, 1.0) is None
    assert expected_frames(10, None, 1.0) is None
    assert expected_frames(10, None, None) == 10


def test_variable_frame_rates_are_sampled_by_time(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 20, 21, 22, 39, 40, 60]
    path = clip(tmp_path, len(stamps), stamps=stamps)
    frames = read(path, 1.0)
    assert numbers(frames) == [0, 4, 7, 8, 9]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 2, 3.9, 4, 6])


def test_times_rounded_to_milliseconds_do_not_shift_the_sampling(tmp_path: Path) -> None:
    path = clip(tmp_path, 20, "clip.mkv", rate=30)
    assert numbers(read(path, 15.0)) == list(range(0, 20, 2))


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=60),
    st.floats(0.05, 200),
    st.sampled_from([1 / 90_000, 1 / 10_240, 1e-3]),
)
def test_the_sampler_keeps_its_definition(steps: list[float], fps: float, tick_s: float) -> None:
    times = np.cumsum(steps)
    slack_s = min(tick_s, 1e-3)
    targets = np.arange(math.floor((times[-1] + slack_s) * fps) + 2) / fps
    # A target within rounding of a frame may fall on either side of it.
    near = np.abs((times + slack_s) * fps - np.round((times + slack_s) * fps))
    assume(near.min() > 1e-9)
    first_at_or_after = np.searchsorted(times + slack_s, targets)
    sampler = Sampler(fps, tick_s)
    taken = [index for index, time_s in enumerate(times) if sampler.takes(time_s)]
    assert taken == sorted(set(first_at_or_after[targets <= times[-1] + slack_s].tolist()))


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_that_is_no_rate_names_its_flag(fps: float) -> None:
    with pytest.raises(SettingsError, match=r"^--fps: got "):
        open_video(str(STREET), fps=fps)


# Clock.


def test_frames_without_stamps_are_counted_by_the_rate() -> None:
    clock = Clock(0.1)
    times = [clock.time_s(stamp) for stamp in (None, None, 7.0, 7.1, None, 7.3)]
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_stamps_that_start_again_go_on_from_the_last_frame() -> None:
    clock = Clock(0.1)
    times = [clock.time_s(stamp) for stamp in (5.0, 5.1, 6.0, 0.0, 0.1, 0.3)]
    assert times == pytest.approx([0, 0.1, 1.0, 1.1, 1.2, 1.4])


def test_stamps_in_disorder_hold_the_time() -> None:
    clock = Clock(0.1)
    times = [clock.time_s(stamp) for stamp in (0.0, 0.1, 0.4, 0.2, 0.3, 0.4, 0.5)]
    assert times == pytest.approx([0, 0.1, 0.4, 0.4, 0.4, 0.4, 0.5])


def test_a_restarted_clock_leaves_the_gap() -> None:
    clock = Clock(0.1)
    clock.time_s(3.0)
    clock.restart(2.0)
    assert [clock.time_s(stamp) for stamp in (90.0, 90.1)] == pytest.approx([2.0, 2.1])


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=40))
def test_time_never_runs_backwards(stamps: list[float | None]) -> None:
    clock = Clock(0.04)
    times = [clock.time_s(stamp) for stamp in stamps]
    assert times == sorted(times)
    assert times[:1] in ([], [0.0])


# Pictures.


def test_a_raw_stream_without_stamps_is_timed_by_its_rate(tmp_path: Path) -> None:
    path = clip(tmp_path, 10, "clip.h264", rate=25, codec="libx264")
    with av.open(str(path)) as container:
        assert all(picture.pts is None for picture in container.decode(video=0))
    frames = read(path, 12.5)
    assert numbers(frames) == [0, 2, 4, 6, 8]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_size_that_changes_midway_loses_no_frame(tmp_path: Path, codec: str) -> None:
    small = clip(tmp_path, 10, "small.ts", codec=codec)
    large = write_clip(
        tmp_path / "large.ts",
        [numbered(k, width=98, height=66) for k in range(10, 20)],
        codec=codec,
    )
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read(both)
    assert numbers(frames) == list(range(20))
    assert [frame.rgb.shape for frame in frames] == [(48, 64, 3)] * 10 + [(66, 98, 3)] * 10
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([k / 10 for k in range(20)], abs=1e-4)
    assert numbers(read(both, 5.0)) == list(range(0, 20, 2))


@pytest.mark.parametrize(("width", "height"), [(33, 21), (1, 1), (2, 101)])
def test_odd_sizes_keep_every_pixel(tmp_path: Path, width: int, height: int) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "odd.mkv", [picture], codec="ffv1", pix_fmt="bgr0")
    (frame,) = read(path)
    np.testing.assert_array_equal(frame.rgb, picture)
    assert frame.rgb.flags.c_contiguous


@pytest.mark.parametrize("fps", [None, 1.0, 100.0])
def test_a_file_of_one_frame_gives_one_frame(tmp_path: Path, fps: float | None) -> None:
    frames = read(clip(tmp_path, 1), fps)
    assert [(frame.index, frame.time_s) for frame in frames] == [(0, 0.0)]


@pytest.mark.parametrize(
    ("matrix", "turns"),
    [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)],
)
def test_pictures_are_turned_upright_as_the_phone_noted(
    tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    picture = numbered(2)
    picture[:20, :30] = 240
    path = turn(write_clip(tmp_path / "phone.mp4", [picture]), matrix)
    (frame,) = read(path)
    expected = np.rot90(picture, turns)
    assert frame.rgb.shape == expected.shape
    assert np.abs(frame.rgb.astype(int) - expected).mean() < 5


def test_a_frame_does_not_share_the_memory_of_its_source() -> None:
    decoder = Decoder(av.open(str(STREET)), "street.mp4")
    for pix_fmt in ("rgb24", "bgr24"):
        picture = av.VideoFrame.from_ndarray(numbered(3), format=pix_fmt)
        rgb = decoder.rgb(picture)
        picture.planes[0].update(bytes(picture.planes[0].buffer_size))
        assert number_of(rgb) == 3
        assert rgb.flags.writeable
    decoder.close()


# Damage.


def test_broken_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    path = damage(clip(tmp_path), [7, 12])
    with open_video(str(path)) as video:
        frames = list(video)
        assert video.broken == 2
    assert numbers(frames) == [k for k in range(20) if k not in (7, 12)]
    assert [frame.index for frame in frames] == list(range(18))


@pytest.mark.parametrize("fps", [None, 10.0])
def test_a_broken_last_frame_hides_no_other(tmp_path: Path, fps: float | None) -> None:
    path = damage(clip(tmp_path), [17, 18])
    with open_video(str(path), fps=fps) as video:
        assert numbers(list(video)) == [*range(17), 19]
        assert video.broken == 2


def test_sparse_sampling_survives_broken_frames(tmp_path: Path) -> None:
    path = damage(clip(tmp_path), [4, 11])
    assert numbers(read(path, 2.0)) == [0, 5, 10, 15]


def test_a_file_cut_off_gives_the_frames_it_has(tmp_path: Path) -> None:
    path = clip(tmp_path, options={"movflags": "faststart"})
    place, size = packets_of(path)[12]
    path.write_bytes(path.read_bytes()[: place + size])
    assert numbers(read(path)) == list(range(13))


def test_a_video_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    path = damage(clip(tmp_path, 6), range(6))
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
    stumbling: Any = Stumbling(clip(tmp_path), INVALID, set(range(20)))
    with VideoFile(stumbling, "clip.mp4", fps=None) as video:
        assert numbers(list(video)) == list(range(20))
        assert video.broken == 20


def test_a_container_that_stays_unreadable_ends(tmp_path: Path) -> None:
    class Stuck(Stumbling):
        def demux(self, stream: object) -> Iterator[av.Packet[Any]]:
            self.at.add(8)
            return super().demux(stream)

    # H.264 holds pictures back to order them; those come, too.
    stuck: Any = Stuck(clip(tmp_path, codec="libx264"), INVALID, {8})
    with VideoFile(stuck, "clip.mp4", fps=None) as video:
        assert len(list(video)) == 8
        assert 0 < video.broken < 100


def test_a_disk_that_fails_midway_is_an_error(tmp_path: Path) -> None:
    failing: Any = Stumbling(clip(tmp_path), IO_ERROR, {6})
    with (
        VideoFile(failing, "clip.mp4", fps=None) as video,
        pytest.raises(VideoError, match=r"^clip\.mp4: cannot be read on after \d+ frames \(input"),
    ):
        list(video)


# Refusals.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file, expected a video; copy or record it again"),
        (bytes(20_000), "not a video, or damaged from the start"),
        (np.random.default_rng(0).bytes(20_000), "not a video, or damaged from the start"),
        (b"hello world\n" * 500, "not a video, or damaged from the start"),
        (STREET.read_bytes()[:60_000], ""),
    ],
    ids=["empty", "zeros", "noise", "text", "cut off before its index"],
)
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert f"{path}: {message}" in refusal(path)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello world\n" * 50)
    assert refusal(path) == f"{path}: a text file, expected a video"


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp4", "aac")])
def test_sound_alone_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, codec)
    assert refusal(path) == f"{path}: has no video, only audio, expected a video stream"


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = add_cover(write_sound(tmp_path / "song.aac", "aac"))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    assert "has no video" in refusal(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "--video: got nothing, expected a file, /dev/videoN or an rtsp:// address"),
        ("nothing/here.mp4", "no such file; check the path"),
        ("a\0b.mp4", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        (str(DATA), "a folder, expected a video file; name a file inside it"),
        (f"{STREET}/clip.mp4", "no such file; check the path"),
        ("bogus://somewhere", "unknown address bogus://, expected a file, /dev/videoN or one of"),
        ("http://127.0.0.1:9/clip.mp4", "connection refused"),
    ],
)
def test_a_source_that_cannot_be_opened_is_refused(source: str, message: str) -> None:
    assert message in refusal(source)


def refusal(source: Path | str) -> str:
    with pytest.raises(StcError) as raised:
        open_video(str(source))
    assert isinstance(raised.value, VideoError)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (av.error.ExitError(1, "Immediate exit requested"), "no answer in time"),
        (av.error.TimeoutError(110, "Connection timed out"), "no answer in time"),
        (av.error.HTTPUnauthorizedError(1, "401"), "user name or password refused"),
        (av.error.HTTPNotFoundError(1, "404"), "refused by the server"),
        (IO_ERROR, "input/output error"),
    ],
)
def test_errors_of_libav_are_told_in_plain_words(error: av.error.FFmpegError, words: str) -> None:
    assert reason(error) == words
    line = str(unreadable("rtsp://camera", error))
    assert line.startswith(f"rtsp://camera: {words}")
    assert "; " in line


def test_without_pyav_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'stc[video]'" in refusal(STREET)


def test_the_runtime_imports_without_pyav_and_pillow() -> None:
    code = (
        "import sys; sys.modules['av'] = sys.modules['PIL'] = None; "
        "import stc.runtime, stc.runtime.video, stc.runtime.preprocess"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_damaged_file_leaves_the_terminal_quiet(tmp_path: Path) -> None:
    path = damage(clip(tmp_path), [3, 9])
    code = "import sys; from stc.runtime.video import open_video; list(open_video(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, timeout=60, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")


# Addresses.


def test_names_with_colons_and_percents_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clip(tmp_path, 2, "12:30 %03d.mp4")
    assert len(read(path)) == 2
    assert len(read(path.as_uri())) == 2
    monkeypatch.chdir(tmp_path)
    assert len(read(path.name)) == 2


def test_a_file_on_a_web_server_is_a_file(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keeps requests off the terminal."""

    clip(tmp_path, 20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert numbers(read(f"{address}/clip.mp4", 5.0)) == list(range(0, 20, 2))
        assert "refused by the server" in refusal(f"{address}/other.mp4")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_closed_file_gives_no_more_frames() -> None:
    video = open_video(str(STREET))
    next(video)
    video.close()
    video.close()
    assert list(video) == []
