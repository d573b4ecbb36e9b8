"""Sources that cannot be opened: one line each, with a fix."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from stc.errors import SettingsError, StcError, VideoError
from stc.runtime.video.causes import reason, unreadable
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import without_credentials
from tests.clips import (
    add_cover,
    damage,
    numbered_clip,
    write_sound,
)

DATA = Path(__file__).parent / "data"
STREET = DATA / "street.mp4"


def refusal(source: Path | str) -> str:
    with pytest.raises(StcError) as raised:
        open_video(str(source))
    assert isinstance(raised.value, VideoError)
    assert "\n" not in str(raised.value)
    return str(raised.value)


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
    assert refusal(path) == (f"{path}: a text file, expected a video; name the file of the video")


def test_a_text_file_on_the_web_is_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello world\n" * 50)
    open_text = partial(av.open, str(path))
    monkeypatch.setattr(av, "open", lambda source, mode, timeout: open_text(mode))
    told = "a text file, expected a video; name the file of the video"
    assert refusal("http://viewer:secret@host/notes.txt") == f"http://***@host/notes.txt: {told}"


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp4", "aac")])
def test_sound_alone_is_refused(tmp_path: Path, name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, codec)
    assert refusal(path) == (
        f"{path}: has no video, only audio, expected a video stream; name another file"
    )


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
        ("0", "no such file; a camera is: --video /dev/video0"),
        ("a\0b.mp4", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        (str(DATA), "a folder, expected a video file; name a file inside it"),
        (f"{STREET}/clip.mp4", "no such file; check the path"),
        ("bogus://somewhere", "unknown address bogus://, expected a file, /dev/videoN or one of"),
        ("http://127.0.0.1:9/clip.mp4", "connection refused"),
        ("http_clip.mp4", "no such file; check the path"),
        ("rtsp_clip.mp4", "no such file; check the path"),
    ],
)
def test_a_source_that_cannot_be_opened_is_refused(source: str, message: str) -> None:
    assert message in refusal(source)


def test_a_camera_that_refuses_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(VideoError) as raised:
        open_video(f"rtsp://viewer:secret@127.0.0.1:{port}/street")
    assert str(raised.value) == (
        f"rtsp://***@127.0.0.1:{port}/street: connection refused; "
        "check that the camera or server is on, and its address and port"
    )


def test_a_camera_that_is_not_there_is_refused() -> None:
    with pytest.raises(VideoError, match=r"^/dev/video999: no such device; (no camera|cameras)"):
        open_video("/dev/video999")


def test_a_link_to_a_camera_is_refused_as_one(tmp_path: Path) -> None:
    link = tmp_path / "front_cam"
    link.symlink_to("/dev/video999")
    assert refusal(link).startswith(f"{link}: no such device; ")


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "front_cam"
    link.symlink_to(link)
    assert f"{link}: cannot be opened" in refusal(link)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://user:pass@host/a", "rtsp://***@host/a"),
        ("rtsp://u:p@h/x", "rtsp://***@h/x"),
        ("rtsp://u:pa/ss@h/x", "rtsp://***@h/x"),
        ("rtsp://u:p@ss/word@h/x", "rtsp://***@h/x"),
        ("rtsp://u:p?a#s s@h/x", "rtsp://***@h/x"),
        ("rtsp://us/er:p@h/x", "rtsp://***@h/x"),
        ("rtsp://token@h/a@b", "rtsp://***@h/a@b"),
        ("rtsp://token@h:554/a:b", "rtsp://***@h:554/a:b"),
        # Where the password ends cannot be told: rather too much is hidden.
        ("rtsp://user:p@ss@host:554/a@b", "rtsp://***@b"),
        ("rtsp://host/a@b", "rtsp://host/a@b"),
        ("http://h/a@b.mp4", "http://h/a@b.mp4"),
        ("http://h/a@b.mp4?at=12:30", "http://h/a@b.mp4?at=12:30"),
        ("videos/me@home.mp4", "videos/me@home.mp4"),
        ("file:///data/a:b@c.mp4", "file:///data/a:b@c.mp4"),
    ],
)
def test_user_and_password_are_not_shown(source: str, shown: str) -> None:
    assert without_credentials(source) == shown


@pytest.mark.parametrize("source", [str(STREET), "/dev/video0", "rtsp://camera"])
def test_live_is_refused_where_it_changes_nothing(source: str) -> None:
    with pytest.raises(SettingsError, match="--live: requires an http:// or https://"):
        open_video(source, live=True)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (av.error.ExitError(1, "Immediate exit requested"), "no answer in time"),
        (av.error.TimeoutError(110, "Connection timed out"), "no answer in time"),
        (av.error.HTTPUnauthorizedError(1, "401"), "user name or password refused"),
        (av.error.HTTPNotFoundError(1, "404"), "refused by the server"),
        (av.error.OSError(5, "Input/output error"), "input/output error"),
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
        "import stc.runtime, stc.runtime.video.open, stc.runtime.vision.preprocess"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_damaged_file_leaves_the_terminal_quiet(tmp_path: Path) -> None:
    path = damage(numbered_clip(tmp_path), [3, 9])
    code = "import sys; from stc.runtime.video import open as o; list(o.open_video(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, timeout=60, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
