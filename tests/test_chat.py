"""Questions typed at a terminal, also while no frame comes."""

from __future__ import annotations

import io
import json
import os
import pty
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stc.errors import SettingsError
from stc.prompts.prompt import TextStream
from stc.runtime.answers.questions import SIGN, Chat
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.stream import run as stream_run
from stc.runtime.video.source.source import Frame, VideoSource
from tests.as_user import ROOT
from tests.language_cases import language_case
from tests.own_process import script_of
from tests.test_run_questions import QUESTION, VIDEO, run
from tests.vision_cases import moving_frames

CAMERA = "rtsp://camera/street"


class Terminal:
    """A terminal with lines typed at it."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def isatty(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(self._lines)


def test_typed_questions_are_asked_in_order_until_the_end() -> None:
    shown = io.StringIO()
    chat = Chat(Terminal(["first\n", "\n", " second \n"]), shown)  # type: ignore[arg-type]
    chat.invite()
    assert list(chat.rest()) == ["first", "second"]
    assert chat.typed() is None
    chat.invite()  # of a conversation that has ended
    assert shown.getvalue() == SIGN


def test_chat_asks_what_is_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal([f"{QUESTION}\n"]))
    assert run("--frames", "3", "--chat", "--max-new-tokens", "2") == 0
    written = capsys.readouterr()
    assert f"] {QUESTION}\n> " in written.out
    assert SIGN in written.err


def test_a_chat_whose_answers_can_never_fit_is_refused_before_the_first_frame(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal([]))
    assert run("--frames", "3", "--chat", "--max-new-tokens", "395") == 2
    told = "error: --max-new-tokens: got 395, expected at most 394, what a question leaves of "
    assert capsys.readouterr().err == f"{told}the model's 400 positions\n"
    assert run("--frames", "1", "--chat", "--max-new-tokens", "394") == 0


class Typist:
    """A terminal at which lines are typed as they come; None ends it."""

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def isatty(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        while (line := self.lines.get()) is not None:
            yield line


class Camera(VideoSource):
    """A live source whose frames come when they are put into `frames`; None ends it."""

    is_live = True

    def __init__(self) -> None:
        super().__init__("camera")
        self.frames: list[Frame | None] = []
        self.taken = 0
        self._changed = threading.Condition()

    def put(self, *frames: Frame | None) -> None:
        with self._changed:
            self.frames += frames
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.frames), timeout_s)

    def __next__(self) -> Frame:
        with self._changed:
            assert self.frames, "the stream waits for a frame and notices nothing else"
            frame = self.frames.pop(0)
        if frame is None:
            raise StopIteration
        self.taken += 1
        return frame

    def close(self) -> None:
        pass


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Camera:
    live = Camera()
    monkeypatch.setattr("stc.runtime.video.live.LiveVideo", lambda *_, **__: live)
    return live


def test_a_typed_question_is_answered_though_no_frame_comes(
    camera: Camera, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typist = Typist()
    monkeypatch.setattr("sys.stdin", typist)
    ask = StreamLanguage.ask
    asked = []

    def watched(self: StreamLanguage, *arguments: Any) -> Any:
        asked.append(camera.taken)
        answer = ask(self, *arguments)
        camera.put(None)  # the source goes on, and ends, only now
        return answer

    monkeypatch.setattr(StreamLanguage, "ask", watched)
    camera.put(*moving_frames(2))
    typist.lines.put(f"{QUESTION}\n")
    threading.Timer(2.0, typist.lines.put, (None,)).start()
    assert run("--chat", "--max-new-tokens", "2", video=CAMERA) == 0
    assert asked in ([1], [2])
    assert f"] {QUESTION}\n> " in capsys.readouterr().out


def test_a_typed_question_waits_for_the_first_frame(
    camera: Camera, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing was seen that it could be about."""
    monkeypatch.setattr("sys.stdin", Terminal([f"{QUESTION}\n"]))
    out = tmp_path / "run.json"
    threading.Timer(0.5, camera.put, (*moving_frames(2), None)).start()
    assert run("--chat", "--max-new-tokens", "2", "--json", str(out), video=CAMERA) == 0
    (asked,) = json.loads(out.read_text())["language"]["questions"]
    assert asked["frames"] >= 1


def test_a_timed_question_waits_for_the_first_frame(camera: Camera, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    late = threading.Timer(0.5, camera.put, (*moving_frames(2), None))
    late.start()
    flags = ["--ask-at", f"0:{QUESTION}", "--max-new-tokens", "2", "--json", str(out)]
    assert run(*flags, video=CAMERA) == 0
    (asked,) = json.loads(out.read_text())["language"]["questions"]
    assert asked["frames"] == 1


def test_frames_of_a_live_source_keep_coming_during_an_answer(
    camera: Camera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_run, "PIECES", 1)
    # Each text token is a piece: of a character, some make one together.
    monkeypatch.setattr(TextStream, "step", lambda *_: "x")
    decode = StreamLanguage._decode
    taken = []

    def watched(self: StreamLanguage, *arguments: Any) -> Any:
        taken.append(camera.taken)
        return decode(self, *arguments)

    monkeypatch.setattr(StreamLanguage, "_decode", watched)
    camera.put(*moving_frames(6), None)
    flags = ["--ask-at", f"0:{QUESTION}", "--max-new-tokens", "12"]
    assert run(*flags, video=CAMERA) == 0
    assert len(taken) == 11
    # Frame 1 asks, frame 2 chooses the first token, from frame 3 on a token is decoded at each.
    assert taken[:4] == [3, 4, 5, 6]


def test_letters_in_another_encoding_do_not_end_the_questions() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, encoding="utf-8") as typed:
        chat = Chat(typed, io.StringIO())
        os.write(ours, b"caf\xe9?\nsecond?\n\x04")
        assert list(chat.rest()) == ["caf\ufffd?", "second?"]
    os.close(ours)


def test_a_terminal_that_is_closed_ends_the_questions() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs) as typed:
        chat = Chat(typed, io.StringIO())
        os.close(ours)
        assert list(chat.rest()) == []


def test_a_closed_stdin_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SettingsError, match="--chat: stdin is no terminal"):
        Chat()


def test_the_terminal_is_whole_after_an_answer_at_the_end(tmp_path: Path) -> None:
    bundle = language_case().bundle.root
    ours, theirs = pty.openpty()
    flags = ["--video", VIDEO, "--frames", "3", "--ask", QUESTION, "--max-new-tokens", "2"]
    command = [sys.executable, *script_of("stc-run"), str(bundle), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = _read_until(ours, "tokens/s")
        assert process.wait(60) == 0
    os.close(ours)
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l") >= 0  # the cursor is back
    assert said.index(f"] {QUESTION}") > said.rfind("frames/s")  # and no table follows


def test_a_terminal_shows_a_sign_and_answers_what_is_typed(tmp_path: Path) -> None:
    bundle = language_case().bundle.root
    ours, theirs = pty.openpty()
    flags = ["--video", VIDEO, "--frames", "3", "--chat", "--max-new-tokens", "2"]
    command = [sys.executable, *script_of("stc-run"), str(bundle), *flags]
    with subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = _read_until(ours, SIGN)
        os.write(ours, f"{QUESTION}\n".encode())
        said += _read_until(ours, "> ")
        said += _read_until(ours, SIGN)
        os.write(ours, b"\x04")  # Ctrl-D
        said += _read_until(ours, "prefill")
        assert process.wait(60) == 0
    os.close(ours)
    assert f"] {QUESTION}" in said
    assert "Traceback" not in said


def _read_until(terminal: int, wanted: str) -> str:
    said, until = "", time.monotonic() + 60
    while wanted not in said:
        readable, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert readable, said
        said += os.read(terminal, 4096).decode(errors="replace")
    return said
