"""Network cameras on loopback: transports, probing, reconnection, and Ctrl-C at any time."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import pytest
from av.video.frame import VideoFrame

from stc.errors import SettingsError, VideoError
from stc.runtime.video import live as video_live
from stc.runtime.video import network as video_network
from stc.runtime.video import open as video_flags
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import RtspTransport, VideoSource
from tests.clips import number_of, numbered, numbered_clip, write_clip
from tests.rtsp_camera import RtspCamera
from tests.stream_server import pieces, silence, tcp_server, web_camera

LONG_S = 60.0
SYSTEM_PYTHON = "/usr/bin/python3"
"""PyGObject belongs to the system's Python."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost source is opened again at once."""
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(video_live, "LONGEST_WAIT_S", 0.04)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return numbered_clip(tmp_path)


@pytest.fixture
def h264(tmp_path: Path) -> Path:
    return numbered_clip(tmp_path, name="h264.mp4", codec="libx264")


# MPEG-TS over TCP.


def test_a_transport_stream_over_tcp_is_read_and_read_again(tmp_path: Path) -> None:
    """An encoder that sends MPEG-TS to whoever connects, and ends after a while."""
    content = write_clip(tmp_path / "clip.ts", map(numbered, range(20)), codec="libx264")
    with (
        tcp_server(pieces(content.read_bytes(), 0.1)) as port,
        open_video(f"tcp://127.0.0.1:{port}") as video,
    ):
        start_s = time.monotonic()
        frames = [next(video)]
        while video.reconnects < 3:
            frames.append(next(video))
        frames.append(next(video))
        passed_s = time.monotonic() - start_s
    assert {number_of(frame.rgb) for frame in frames} <= set(range(20))
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    # 2 s of media come each time, in a tenth of a second.
    assert times[-1] <= passed_s + 1.0


# RTSP.


@pytest.mark.parametrize("refusal", [461, 400, 500, None])
def test_a_camera_that_sends_over_udp_only_is_read(clip: Path, refusal: int | None) -> None:
    """A camera that refuses TCP, by the standard's 461 or in a way of its own."""
    with (
        RtspCamera(clip, transports=["udp"], refusal=refusal) as camera,
        open_video(camera.address) as video,
    ):
        numbers = {number_of(next(video).rgb) for _ in range(5)}
        assert (camera.asked[0], camera.asked[-1]) == ("tcp", "udp")
        camera.hang_up()
    assert numbers <= set(range(20))


def test_tcp_is_asked_for_first(clip: Path) -> None:
    """A camera that offers both: over TCP nothing is lost."""
    with RtspCamera(clip) as camera, open_video(camera.address) as video:
        next(video)
        assert camera.asked == ["tcp"]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_transport_asked_for_is_the_one_that_is_used(
    clip: Path, transport: RtspTransport
) -> None:
    """--rtsp-transport, as ffmpeg's -rtsp_transport."""
    with RtspCamera(clip) as camera, open_video(camera.address, rtsp_transport=transport) as video:
        next(video)
        assert camera.asked == [transport]


@pytest.mark.parametrize(("transport", "offered"), [("tcp", "udp"), ("udp", "tcp")])
def test_a_transport_the_camera_refuses_is_named(
    clip: Path, transport: RtspTransport, offered: str
) -> None:
    """--rtsp-transport udp of a camera that sends over TCP only, and the other way round."""
    with (
        RtspCamera(clip, transports=[offered]) as camera,
        pytest.raises(VideoError, match=f"does not send over {transport}; leave out --rtsp-transp"),
    ):
        open_video(camera.address, rtsp_transport=transport)


def test_a_server_that_is_not_done_with_the_viewer_before_is_asked_again(clip: Path) -> None:
    """GStreamer's says 503 to a viewer who comes while it lets go of another."""
    with RtspCamera(clip, busy=2) as camera, open_video(camera.address) as video:
        assert number_of(next(video).rgb) in range(20)


def test_a_scheme_in_capitals_is_the_scheme(clip: Path) -> None:
    """RTSP:// as some cameras' pages print it."""
    with (
        RtspCamera(clip) as camera,
        open_video(camera.address.replace("rtsp:", "RTSP:")) as video,
    ):
        assert video.is_live
        assert number_of(next(video).rgb) in range(20)


def test_the_first_frame_does_not_wait_for_the_rate(
    h264: Path, looked: list[dict[str, str]]
) -> None:
    """A camera of 5 frames a second: libav's own look takes 20 of them, here it takes a few."""
    with (
        RtspCamera(h264, pace_s=0.2, rate=5) as camera,
        open_video(camera.address) as video,
    ):
        next(video)
        assert camera.sent < 16
        assert video.rate == 5.0
        camera.hang_up()
        while video.reconnects == 0:
            next(video)
    # And no more when it is lost and opened again.
    assert len(looked) == 2
    assert looked[0] == looked[1]


def test_a_camera_whose_key_frame_is_late_is_looked_at_for_longer(h264: Path) -> None:
    """Long groups of pictures without parameters in the description: the size comes late."""
    with (
        RtspCamera(h264, pace_s=0.02, first=1) as camera,
        open_video(camera.address, probe_s=0.04) as video,
    ):
        assert number_of(next(video).rgb) in range(20)
        # SlicedEmbedding at twice, and from then on for long enough at once.
        assert camera.viewers == 2
        camera.hang_up()
        while video.reconnects == 0:
            next(video)
        assert camera.viewers == 3


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The options libav was given, each time it opened an address."""
    asked: list[dict[str, str]] = []
    dial: Any = av.open

    def watched(*address: str, **how: Any) -> Any:
        asked.extend([how["options"]] if "options" in how else [])
        return dial(*address, **how)

    monkeypatch.setattr(av, "open", watched)
    return asked


# A server that others wrote.


@pytest.fixture(scope="module")
def gstreamer() -> Iterator[str]:
    """Host and port of GStreamer's RTSP server, where it is installed."""
    missing = "no GStreamer RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi"
    if not Path(SYSTEM_PYTHON).exists():
        pytest.skip(missing)
    with subprocess.Popen(
        [SYSTEM_PYTHON, "-m", "tests.gstreamer_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        port = server.stdout.readline().strip() if server.stdout is not None else ""
        if not port:
            pytest.skip(missing)
        yield f"127.0.0.1:{port}"
        server.kill()


@pytest.mark.parametrize("path", ["h264", "long", "vp8", "both", "udp"])
def test_streams_of_gstreamer_are_read(gstreamer: str, path: str) -> None:
    """H.264 with short and long groups, VP8, with sound beside it, and over UDP alone."""
    start_s = time.monotonic()
    with open_video(f"rtsp://{gstreamer}/{path}") as video:
        first = next(video)
        opened_s = time.monotonic() - start_s
        assert first.rgb.shape == (240, 320, 3)
        last = first
        while last.time_s < 0.5:
            last = next(video)
    # The whole of libav's look takes 5 s, of what it has no rate for.
    assert opened_s < 4.5
    assert last.time_s <= time.monotonic() - start_s


def test_sound_alone_of_gstreamer_is_told_apart(gstreamer: str) -> None:
    """A stream of an intercom without its camera."""
    with pytest.raises(VideoError, match="has no video, only audio"):
        open_video(f"rtsp://{gstreamer}/sound")


# Flags.


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--video", "clip.mp4", "--rtsp-transport", "udp"], "--rtsp-transport: requires"),
        (["--video", "http://h/a", "--rtsp-transport", "tcp"], "--rtsp-transport: requires"),
        (["--video", "tcp://h:1", "--rtsp-transport", "auto"], "--rtsp-transport: requires"),
        (["--video", "rtsps://h/a", "--rtsp-transport", "udp"], "--rtsp-transport: got udp"),
        (["--video", "clip.mp4", "--probe-s", "2"], "--probe-s: requires a live address"),
        (["--video", "http://h/a", "--probe-s", "2"], "--probe-s: requires a live address"),
        (["--video", "http://h/a", "--give-up-s", "2"], "--give-up-s: requires a live --video"),
        (["--video", "rtsp://h/a", "--probe-s", "0"], "--probe-s: got 0.0, expected more than 0"),
        (["--video", "rtsp://h/a", "--probe-s", "nan"], "--probe-s: got nan"),
        (["--video", "rtsp://h/a", "--probe-s", "1e9"], "--probe-s: got 1000000000.0"),
    ],
)
def test_a_flag_without_effect_is_refused(flags: list[str], told: str) -> None:
    """Flags of network cameras given for something else, told before anything is opened."""
    with pytest.raises(SettingsError) as raised:
        source_of(*flags)
    assert str(raised.value).startswith(told)


def source_of(*flags: str) -> VideoSource:
    """What `stc-run` opens for `flags`."""
    parser = argparse.ArgumentParser()
    video_flags.add_flags(parser)
    return video_flags.open_source(parser.parse_args(flags))


def test_a_transport_there_is_none_of_is_refused() -> None:
    """--rtsp-transport http, which ffmpeg has and this has not."""
    with pytest.raises(SettingsError, match="--rtsp-transport: got 'http', expected auto, tcp"):
        open_video("rtsp://h/a", rtsp_transport="http")  # type: ignore[arg-type]


def test_flags_of_a_network_camera_arrive(clip: Path, looked: list[dict[str, str]]) -> None:
    """A camera over UDP, with a longer look."""
    with RtspCamera(clip) as camera:
        flags = ["--video", camera.address, "--rtsp-transport", "udp", "--probe-s", "2"]
        with source_of(*flags) as video:
            next(video)
        assert camera.asked == ["udp"]
    assert looked[0]["analyzeduration"] == "2000000"


# M-JPEG over HTTP.


def test_a_web_camera_of_jpeg_pictures_is_live() -> None:
    """multipart/x-mixed-replace, as cheap cameras and ESP32 boards send it."""
    with (
        web_camera() as host,
        open_video(f"http://{host}/video", live=True) as video,
    ):
        frames = [next(video) for _ in range(5)]
    assert all(number_of(frame.rgb) in range(20) for frame in frames)


# Ctrl-C.


@contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def rtsp(clip: Path) -> Iterator[str]:
    with RtspCamera(clip, manner="silent") as camera:
        yield camera.address


def tcp(clip: Path) -> Iterator[str]:
    with tcp_server(silence) as port:
        yield f"tcp://127.0.0.1:{port}"


def http_file(clip: Path) -> Iterator[str]:
    with tcp_server(silence) as port:
        yield f"http://127.0.0.1:{port}/clip.mp4"


def pipe(clip: Path) -> Iterator[str]:
    path = clip.parent / "camera.pipe"
    os.mkfifo(path)
    yield str(path)
    # A writer that comes and goes lets the one that still waits to open it go on.
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def begun_pipe(clip: Path) -> Iterator[str]:
    path = clip.parent / "camera.pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    os.write(writer, clip.read_bytes()[:100])
    yield str(path)
    os.close(writer)


@pytest.mark.parametrize("server", [rtsp, tcp, http_file, pipe, begun_pipe])
def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(
    clip: Path, monkeypatch: pytest.MonkeyPatch, server: Callable[[Path], Iterator[str]]
) -> None:
    """A camera that takes the connection and says nothing, with a user who has seen enough."""
    monkeypatch.setattr(video_network, "TIMEOUTS_S", (LONG_S / 4, LONG_S / 4))
    with contextmanager(server)(clip) as address:
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.2):
            open_video(address)
        assert time.monotonic() - start_s < LONG_S / 6


def test_one_thread_reads_all_of_what_may_wait(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a file on a server costs no thread of its own, and no thread outlives it."""
    readers: list[threading.Thread] = []
    pictures = Decoder.pictures

    def noted(decoder: Decoder) -> Iterator[VideoFrame | None]:
        for picture in pictures(decoder):
            readers.append(threading.current_thread())
            yield picture

    monkeypatch.setattr(Decoder, "pictures", noted)
    with web_camera() as host, open_video(f"http://{host}/video") as video:
        for _ in range(10):
            next(video)
    assert len(readers) >= 10
    assert set(readers) == {readers[0]}
    assert readers[0] is not threading.main_thread()
    readers[0].join(LONG_S)
    assert not readers[0].is_alive()


def test_ctrl_c_does_not_wait_for_a_file_that_stalls(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on a web server that stops sending midway."""
    monkeypatch.setattr(video_network, "TIMEOUTS_S", (LONG_S / 4, LONG_S / 4))
    with web_camera() as host, open_video(f"http://{host}/stall") as video:
        start_s = time.monotonic()
        with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.5):
            list(video)
        assert time.monotonic() - start_s < LONG_S / 6
