"""Pictures of live sources: converted when they are taken, of any size, from any address."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from stc.runtime.commands import run as run_command
from stc.runtime.video import live as video_live
from stc.runtime.video import open as video
from stc.runtime.video.decoding.decoder import Decoder
from stc.runtime.video.open import open_video
from tests.clips import number_of, numbered, numbered_clip, write_clip
from tests.test_video_live import LONG_S, Openings, live


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost source is opened again at once."""
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(video_live, "LONGEST_WAIT_S", 0.04)


# Conversion.


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The thread of every conversion to RGB."""
    threads: list[threading.Thread] = []
    rgb = Decoder.rgb

    def counted(decoder: Decoder, picture: VideoFrame) -> NDArray[np.uint8]:
        threads.append(threading.current_thread())
        return rgb(decoder, picture)

    monkeypatch.setattr(Decoder, "rgb", counted)
    return threads


def test_only_frames_that_are_taken_are_converted(
    tmp_path: Path, converted: list[threading.Thread]
) -> None:
    opener = Openings(numbered_clip(tmp_path, 20))
    with live(opener) as source:
        assert opener.exhausted.wait(LONG_S)
        assert converted == []
        assert number_of(next(source).rgb) == 19
    assert converted == [threading.main_thread()]


def test_the_age_of_live_frames_is_told(tmp_path: Path) -> None:
    opener = Openings(numbered_clip(tmp_path, 3))
    with live(opener) as source:
        assert opener.exhausted.wait(LONG_S)
        time.sleep(0.1)
        next(source)
        assert 100 <= source.oldest_ms < LONG_S * 1e3
    with open_video(str(numbered_clip(tmp_path, 3))) as source:
        next(source)
        assert source.oldest_ms == 0


def test_pictures_in_a_cameras_own_buffers_are_copied_before_it_goes_on(
    tmp_path: Path, converted: list[threading.Thread]
) -> None:
    clip = numbered_clip(tmp_path, 5, "clip.nut", codec="rawvideo", pix_fmt="yuyv422")
    opener = Openings(clip)
    with live(opener) as source:
        assert opener.exhausted.wait(LONG_S)
        assert len(converted) == 5
        assert number_of(next(source).rgb) == 4
    assert threading.main_thread() not in converted


def test_a_live_source_may_change_its_size(tmp_path: Path) -> None:
    sizes = ((64, 48), (96, 64), (63, 35))
    parts = [
        write_clip(tmp_path / f"{width}.mkv", [numbered(n, width=width, height=height)] * 3)
        for n, (width, height) in enumerate(sizes)
    ]
    seen: dict[int, tuple[int, ...]] = {}
    with live(Openings(*parts)) as source:
        while len(seen) < 3:
            frame = next(source)
            seen[number_of(frame.rgb)] = frame.rgb.shape
    assert seen == {n: (height, width, 3) for n, (width, height) in enumerate(sizes)}


def test_a_slow_decoder_gives_every_frame_to_a_faster_consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Decoder.pictures

    def slow(decoder: Decoder) -> Iterator[VideoFrame | None]:
        for picture in pictures(decoder):
            time.sleep(0.03)
            yield picture

    monkeypatch.setattr(Decoder, "pictures", slow)
    with live(Openings(numbered_clip(tmp_path, 8))) as source:
        frames = list(itertools.islice(source, 8))
        assert source.dropped == 0
    assert [number_of(frame.rgb) for frame in frames] == list(range(8))


# Addresses.


def test_a_camera_is_opened_as_v4l2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, opened = numbered_clip(tmp_path, 3), []
    open_file: Any = av.open

    def stub(source: str, mode: str, **how: Any) -> Any:
        opened.append((source, mode, how))
        return open_file(str(clip), mode)

    monkeypatch.setattr(video, "_check_camera", lambda path: None)
    monkeypatch.setattr(av, "open", stub)
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", LONG_S)
    link = tmp_path / "front_cam"  # as a udev rule makes one in /dev
    link.symlink_to("/dev/video0")
    for camera in ("/dev/video0", "/dev/v4l/by-id/usb-camera", str(link)):
        with open_video(camera) as source:
            assert source.is_live
            next(source)
        assert opened.pop() == (camera, "r", {"format": "v4l2"})


@pytest.fixture
def mjpeg_camera() -> Iterator[str]:
    """The address of a camera that sends 20 JPEG pictures at once, and then nothing."""
    parts = []
    for number in range(20):
        picture = io.BytesIO()
        Image.fromarray(numbered(number)).save(picture, "jpeg")
        head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {picture.tell()}\r\n\r\n"
        parts.append(head.encode() + picture.getvalue() + b"\r\n")
    done = threading.Event()

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
            self.end_headers()
            self.wfile.write(b"".join(parts))
            self.wfile.flush()
            done.wait(LONG_S)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/video"
    done.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_camera_on_the_web_is_live_when_asked(mjpeg_camera: str) -> None:
    with open_video(mjpeg_camera, live=True) as source:
        assert source.is_live
        numbers = [number_of(next(source).rgb)]
        while numbers[-1] < 15:
            numbers.append(number_of(next(source).rgb))
        assert numbers == sorted(set(numbers))
        assert numbers[-1] + 1 >= len(numbers) + source.dropped
    with open_video(mjpeg_camera) as source:
        assert not source.is_live
        assert number_of(next(source).rgb) == 0


def test_live_arrives(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command.main([str(demo_bundle), "--video", "clip.mp4", "--live"]) == 2
    assert capsys.readouterr().err.startswith("error: --live: requires an http://")
