"""Live video: the newest frame wins, what is lost comes back, and nothing is left open."""

from __future__ import annotations

import itertools
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import av.error
import pytest
from av.container import InputContainer
from av.video.frame import VideoFrame

from stc.errors import VideoError
from stc.runtime.video import live as video_live
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.live import LiveVideo
from stc.runtime.video.open import open_video
from tests.clips import damage, number_of, numbered, write_clip, write_sound
from tests.rtsp_camera import RtspCamera

LONG_S = 20.0
"""More than anything here takes; reached only by a test that fails."""

REFUSED = av.error.ConnectionRefusedError(111, "Connection refused")

Step = Path | Exception


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost source is opened again at once."""
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(video_live, "LONGEST_WAIT_S", 0.04)


class Openings:
    """An opener that goes through `steps`: a file to serve, or an error to raise.

    After the last step it raises REFUSED for ever. `exhausted` is set when it first does: by then
    everything before has been read.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps: Iterator[Step] = iter(steps)
        self.opened: list[InputContainer] = []
        self.called_at_s: list[float] = []
        self.exhausted = threading.Event()

    def __call__(self) -> InputContainer:
        self.called_at_s.append(time.monotonic())
        step = next(self.steps, None)
        if step is None:
            self.exhausted.set()
            raise REFUSED
        if isinstance(step, Exception):
            raise step
        container = av.open(str(step), "r")
        self.opened.append(container)
        return container


class Tap:
    """An MPEG-TS of which three quarters flow, and the rest when `flow` is set."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.place = 0
        self.free = len(self.content) * 3 // 4
        self.flow = threading.Event()
        self.held = threading.Event()

    def read(self, size: int) -> bytes:
        if self.place >= self.free and not self.flow.is_set():
            self.held.set()
            self.flow.wait(LONG_S)
        chunk = self.content[self.place : self.place + min(size, 188)]
        self.place += len(chunk)
        return chunk


def clip(folder: Path, numbers: range, name: str = "clip.mkv") -> Path:
    return write_clip(folder / name, (numbered(k) for k in numbers))


def live(
    opener: Callable[[], InputContainer],
    *,
    fps: float | None = None,
    give_up_s: float = 20.0,
    now: Callable[[], float] = time.monotonic,
) -> LiveVideo:
    return LiveVideo(opener, "rtsp://camera/street", fps=fps, give_up_s=give_up_s, now=now)


def in_real_time() -> Callable[[], float]:
    """A wall clock on which frames come as fast as they were filmed, at 10 a second."""
    decoded = itertools.count()
    return lambda: next(decoded) / 10


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No picture comes before it is set."""
    pictures, flow = Decoder.pictures, threading.Event()

    def late(decoder: Decoder) -> Iterator[VideoFrame | None]:
        flow.wait(LONG_S)
        yield from pictures(decoder)

    monkeypatch.setattr(Decoder, "pictures", late)
    return flow


def assert_released(video: LiveVideo, opened: list[InputContainer]) -> None:
    assert not video._reader.is_alive()
    # A closed container has no streams.
    assert not any(len(container.streams) for container in opened)


# The newest frame wins.


def test_whether_a_frame_is_there_can_be_asked_without_taking_it(tmp_path: Path) -> None:
    opener = Openings(clip(tmp_path, range(3)))
    with live(opener, give_up_s=0.5) as video:
        assert opener.exhausted.wait(LONG_S)
        assert video.wait(0.0)
        assert number_of(next(video).rgb) == 2
        assert not video.wait(0.01)
        # The error of a source that stays away is something to take, too.
        assert video.wait(LONG_S)
        with pytest.raises(VideoError, match="no frame for"):
            next(video)


def test_a_slow_consumer_gets_the_newest_frame_and_the_others_are_counted(
    tmp_path: Path, flow: threading.Event
) -> None:
    opener = Openings(clip(tmp_path, range(20)))
    with live(opener) as video:
        assert video.is_live
        assert video.frames_expected is None
        assert video.rate == 10.0
        assert not video.wait(0.0)
        flow.set()
        assert opener.exhausted.wait(LONG_S)
        frame = next(video)
        assert number_of(frame.rgb) == 19
        assert (frame.index, frame.time_s) == (0, 0.0)
        assert video.dropped == 19
    assert_released(video, opener.opened)


def test_a_stream_begins_with_the_first_frame_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came before, while a model was loaded, is neither dropped nor a part of its time."""
    tap = Tap(clip(tmp_path, range(20), "clip.ts"))
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", LONG_S)
    with live(lambda: open_tap(tap), now=in_real_time()) as video:
        assert tap.held.wait(LONG_S)
        frame = next(video)
        before = number_of(frame.rgb)
        assert before > 5
        assert (frame.index, frame.time_s, video.dropped) == (0, 0.0, 0)
        tap.flow.set()
        while number_of(frame.rgb) != 19:
            frame = next(video)
        assert frame.time_s == pytest.approx((19 - before) / 10)
        assert frame.index + video.dropped == 19 - before


def test_frames_not_sampled_are_not_dropped_frames(tmp_path: Path, flow: threading.Event) -> None:
    opener = Openings(clip(tmp_path, range(20)))
    with live(opener, fps=2.0, now=in_real_time()) as video:
        assert not video.wait(0.0)
        flow.set()
        assert opener.exhausted.wait(LONG_S)
        assert number_of(next(video).rgb) == 15
        assert video.dropped == 3


def test_broken_frames_of_a_live_source_are_skipped_and_counted(tmp_path: Path) -> None:
    path = damage(write_clip(tmp_path / "clip.mp4", map(numbered, range(10))), [3, 9])
    opener = Openings(path)
    with live(opener) as video:
        assert opener.exhausted.wait(LONG_S)
        assert number_of(next(video).rgb) == 8
        assert video.broken == 2


# What is lost comes back.


def test_a_lost_source_is_opened_again(tmp_path: Path) -> None:
    first = clip(tmp_path, range(5), "first.mkv")
    second = clip(tmp_path, range(5, 15), "second.mkv")
    silent = write_sound(tmp_path / "sound.wav", "pcm_s16le")
    opener = Openings(first, REFUSED, silent, second)
    with live(opener) as video:
        frames = [next(video)]
        while number_of(frames[-1].rgb) != 14:
            frames.append(next(video))
        assert video.reconnects == 1
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    assert_released(video, opener.opened)
    assert len(opener.opened) == 3


def test_the_time_a_source_was_away_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path, range(5))
    opener, taken = Openings(path, path), threading.Event()

    def late() -> InputContainer:
        if opener.opened:
            taken.wait(LONG_S)
        return opener()

    monkeypatch.setattr(video_live, "FIRST_WAIT_S", 0.2)
    with live(late) as video:
        start_s = time.monotonic()
        next(video)
        taken.set()
        assert opener.exhausted.wait(LONG_S)
        last = next(video)
        passed_s = time.monotonic() - start_s
    assert number_of(last.rgb) == 4
    assert 0.2 <= last.time_s <= passed_s + 0.2


def test_waits_between_attempts_double_up_to_the_longest(tmp_path: Path) -> None:
    opener = Openings(clip(tmp_path, range(2)), *[REFUSED] * 5)
    with live(opener):
        assert opener.exhausted.wait(LONG_S)
    waits = [after - before for before, after in itertools.pairwise(opener.called_at_s)]
    for wait_s, least_s in zip(waits[:5], (0.01, 0.02, 0.04, 0.04, 0.04), strict=True):
        assert wait_s >= least_s * 0.99


def test_a_source_that_stays_away_is_given_up(tmp_path: Path) -> None:
    opener = Openings(clip(tmp_path, range(2)))
    with live(opener, give_up_s=0.2) as video:
        with pytest.raises(VideoError) as raised:
            list(video)
        assert str(raised.value) == (
            "rtsp://camera/street: no frame for 0.2 s (connection refused); "
            "check that the camera or server is on, and the network"
        )
    assert_released(video, opener.opened)


def test_a_source_that_falls_silent_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_live, "CLOSE_WAIT_S", 0.05)
    tap = Tap(clip(tmp_path, range(20), "clip.ts"))
    video = live(lambda: open_tap(tap), give_up_s=0.2)
    with pytest.raises(VideoError, match=r"no frame for 0\.2 s \(no frame came\)"):
        list(video)
    tap.flow.set()
    video._reader.join(LONG_S)
    assert_released(video, [])


def open_tap(tap: Tap) -> InputContainer:
    # A short look finds the one stream; libav's usual one would wait for what is held back.
    return av.open(tap, "r", format="mpegts", options={"probesize": "1000"}, buffer_size=188)


def test_a_lost_source_may_be_waited_for_without_end(tmp_path: Path) -> None:
    opener = Openings(clip(tmp_path, range(2)), REFUSED, clip(tmp_path, range(2, 4), "later.mkv"))
    with live(opener, give_up_s=math.inf) as video:
        while number_of(next(video).rgb) != 3:
            pass


def test_a_mistake_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    opener = Openings(clip(tmp_path, range(2)), ZeroDivisionError("a mistake"))
    with live(opener) as video, pytest.raises(ZeroDivisionError, match="a mistake"):
        list(video)
    assert_released(video, opener.opened)


# Closing.


def test_closing_does_not_wait_for_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Openings(clip(tmp_path, range(2)))
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", LONG_S)
    with live(opener) as video:
        next(video)
    assert_released(video, opener.opened)
    assert list(video) == []


def test_closing_from_elsewhere_ends_the_wait_for_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = Openings(clip(tmp_path, range(2)))
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", LONG_S)
    with live(opener) as video:
        closer = threading.Timer(0.05, video.close)
        closer.start()
        assert len(list(video)) <= 2
        closer.join()


def test_a_read_that_blocks_does_not_hold_up_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_live, "CLOSE_WAIT_S", 0.05)
    tap = Tap(clip(tmp_path, range(20), "clip.ts"))
    opened = []

    def opener() -> InputContainer:
        opened.append(open_tap(tap))
        return opened[-1]

    video = live(opener)
    next(video)
    assert tap.held.wait(LONG_S)
    video.close()
    assert list(video) == []
    assert video._reader.is_alive()
    tap.flow.set()
    video._reader.join(LONG_S)
    assert_released(video, opened)


# Refusals.


def test_a_source_that_is_not_there_at_the_start_is_refused_at_once(tmp_path: Path) -> None:
    opener = Openings()
    with pytest.raises(VideoError, match=r"^rtsp://camera/street: connection refused"):
        live(opener)
    assert len(opener.called_at_s) == 1


def test_a_live_source_of_sound_alone_is_refused_and_released(tmp_path: Path) -> None:
    opener = Openings(write_sound(tmp_path / "sound.wav", "pcm_s16le"))
    with pytest.raises(VideoError, match="has no video, only audio"):
        live(opener)
    assert len(opener.opened[0].streams) == 0


# Sockets.


def test_an_rtsp_camera_is_read_over_tcp_and_read_again_after_it_hung_up(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", map(numbered, range(20)))
    with RtspCamera(path) as camera, open_video(camera.address) as video:
        frames = [next(video) for _ in range(5)]
        camera.hang_up()
        while video.reconnects == 0:
            frames.append(next(video))
        frames += [next(video) for _ in range(5)]
        assert video.reconnects == 1
        assert [request.split()[0] for request in camera.requests].count("PLAY") == 2
    assert video.name == camera.address.replace("viewer:secret", "***")
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times = [frame.time_s for frame in frames]
    assert times == sorted(set(times))
    assert {number_of(frame.rgb) for frame in frames} <= set(range(20))


def test_a_stream_on_a_socket_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path, range(20))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            viewer, _ = listener.accept()
            with viewer:
                viewer.sendall(path.read_bytes())

        sender = threading.Thread(target=send)
        sender.start()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(video_live, "FIRST_WAIT_S", LONG_S)
        with open_video(address) as video:
            assert video.is_live
            frames = [next(video)]
            while number_of(frames[-1].rgb) != 19:
                frames.append(next(video))
        sender.join()
    # What came before the first `next` is not counted.
    assert 20 - number_of(frames[0].rgb) <= len(frames) + video.dropped <= 20
