"""Video files: what is sampled, when, and with which pixels."""

from __future__ import annotations

import math
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import av
import av.error
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stc.errors import SettingsError, VideoError
from stc.runtime.video.clock import Clock, FrameSampler, expected_frames
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.open import open_video
from tests.clips import (
    number_of,
    numbered,
    numbered_clip,
    numbers_of,
    read_frames,
    turn,
    write_clip,
)

DATA = Path(__file__).parent / "data"
STREET = DATA / "street.mp4"


# Sampling.


def test_a_file_gives_every_frame_in_order(tmp_path: Path) -> None:
    frames = read_frames(numbered_clip(tmp_path))
    assert numbers_of(frames) == list(range(20))
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
    frames = read_frames(STREET, fps)
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
    path = numbered_clip(tmp_path, len(stamps), stamps=stamps)
    frames = read_frames(path, 1.0)
    assert numbers_of(frames) == [0, 4, 7, 8, 9]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 2, 3.9, 4, 6])


def test_times_rounded_to_milliseconds_do_not_shift_the_sampling(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path, 20, "clip.mkv", rate=30)
    assert numbers_of(read_frames(path, 15.0)) == list(range(0, 20, 2))


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
    sampler = FrameSampler(fps, tick_s)
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


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=40))
def test_time_never_runs_backwards(stamps: list[float | None]) -> None:
    clock = Clock(0.04)
    times = [clock.time_s(stamp) for stamp in stamps]
    assert times == sorted(times)
    assert times[:1] in ([], [0.0])


# Pictures.


def test_a_raw_stream_without_stamps_is_timed_by_its_rate(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path, 10, "clip.h264", rate=25, codec="libx264")
    with av.open(str(path)) as container:
        assert all(picture.pts is None for picture in container.decode(video=0))
    frames = read_frames(path, 12.5)
    assert numbers_of(frames) == [0, 2, 4, 6, 8]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.08, 0.16, 0.24, 0.32])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_size_that_changes_midway_loses_no_frame(tmp_path: Path, codec: str) -> None:
    small = numbered_clip(tmp_path, 10, "small.ts", codec=codec)
    large = write_clip(
        tmp_path / "large.ts",
        [numbered(k, width=98, height=66) for k in range(10, 20)],
        codec=codec,
    )
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read_frames(both)
    assert numbers_of(frames) == list(range(20))
    assert [frame.rgb.shape for frame in frames] == [(48, 64, 3)] * 10 + [(66, 98, 3)] * 10
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([k / 10 for k in range(20)], abs=1e-4)
    assert numbers_of(read_frames(both, 5.0)) == list(range(0, 20, 2))


@pytest.mark.parametrize(("width", "height"), [(33, 21), (1, 1), (2, 101)])
def test_odd_sizes_keep_every_pixel(tmp_path: Path, width: int, height: int) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "odd.mkv", [picture], codec="ffv1", pix_fmt="bgr0")
    (frame,) = read_frames(path)
    np.testing.assert_array_equal(frame.rgb, picture)
    assert frame.rgb.flags.c_contiguous


@pytest.mark.parametrize("fps", [None, 1.0, 100.0])
def test_a_file_of_one_frame_gives_one_frame(tmp_path: Path, fps: float | None) -> None:
    frames = read_frames(numbered_clip(tmp_path, 1), fps)
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
    (frame,) = read_frames(path)
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


# Addresses.


def test_names_with_colons_and_percents_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered_clip(tmp_path, 2, "12:30 %03d.mp4")
    assert len(read_frames(path)) == 2
    assert len(read_frames(path.as_uri())) == 2
    monkeypatch.chdir(tmp_path)
    assert len(read_frames(path.name)) == 2


def test_a_file_on_a_web_server_is_a_file(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keeps requests off the terminal."""

    numbered_clip(tmp_path, 20)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert numbers_of(read_frames(f"{address}/clip.mp4", 5.0)) == list(range(0, 20, 2))
        with open_video(f"{address}/clip.mp4", live=True) as camera:
            assert camera.is_live
            assert next(camera).rgb.shape[2] == 3
        with pytest.raises(VideoError, match="refused by the server"):
            open_video(f"{address}/other.mp4")
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
