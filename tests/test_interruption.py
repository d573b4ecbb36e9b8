"""A user who stops a command, or what reads its output: no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest

from stc.errors import VideoError, guarded
from stc.runtime.commands import run as run_command
from stc.runtime.video.file import VideoFile
from stc.runtime.video.source.source import Frame
from stc.shell import command
from stc.shell.command import uninterrupted
from stc.shell.streams import STDOUT
from tests.as_user import CLIP, ROOT, frames_of, run, standing, start
from tests.own_process import script_of

ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Makes the terminal at stdin the process's own, as a shell's are, and goes on with argv."""


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; what systemd, docker and timeout send; what a terminal sends that is closed."""


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_ends_a_stream_with_all_it_was_asked_for(
    stop: signal.Signals, demo_bundle: Path, tmp_path: Path
) -> None:
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    with start(tmp_path, "stc-run", demo_bundle, "--video", CLIP, *outputs) as process:
        assert process.stderr is not None
        assert "frame 0" in process.stderr.readline()
        process.send_signal(stop)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, ""), stderr
    assert "interrupted; this is the stream so far" in stderr
    assert "Traceback" not in stderr
    frames = json.loads((tmp_path / "o.json").read_text())["summary"]["frames"]
    assert 1 <= frames < 200
    assert f"\n{frames} frames" in stderr
    assert frames_of(tmp_path / "o.mp4") == frames
    assert set(standing(tmp_path)) == {"o.mp4", "o.png", "o.json"}


def test_a_stop_during_an_export_leaves_nothing(tmp_path: Path) -> None:
    command = ["stc-export", "--model", "demo", "--output", "bundle"]
    with start(tmp_path, *command) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".bundle*/*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert standing(tmp_path)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    # CPython dies of the signal itself when what was interrupted is a string given to exec, as in
    # torch's tracing. To a shell both are 130.
    assert stderr == "interrupted; nothing was written\n"
    assert process.returncode in {130, -signal.SIGINT}
    assert standing(tmp_path) == {}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_waits_for_the_end_of_a_frame(
    stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The terminal is the tests', too.
    monkeypatch.setattr(command, "_leave_terminal", lambda number: None)
    done = []

    def frame() -> int:
        before = signal.getsignal(stop)
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(stop)
            done.append("frame")
        assert signal.getsignal(stop) is before
        return 0

    outside = signal.getsignal(stop)
    assert command.run(frame) == 0
    assert done == ["frame"]
    assert signal.getsignal(stop) is outside


def callback_fails(kind: str) -> NoReturn:
    """What a library raises in place of what its callback raised."""
    if kind == "guarded":
        with guarded("tokenizer", "fails"):
            raise RuntimeError("a callback failed")
    errors = {"RuntimeError": RuntimeError, "SystemError": SystemError, "OSError": OSError}
    raise errors[kind]("a callback failed")


MASKS = ("RuntimeError", "SystemError", "OSError", "guarded")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", MASKS)
def test_a_stop_that_a_library_makes_an_error_of_is_a_stop(
    kind: str, stop: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch's tracing does where it calls back from C."""

    def stopped() -> int:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(stop)
        callback_fails(kind)

    assert command.run(stopped) == 130
    assert capsys.readouterr() == ("", "interrupted; nothing was written\n")


@pytest.mark.parametrize("stop", [None, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", MASKS)
def test_an_error_after_a_stop_that_was_handled_is_an_error(
    kind: str, stop: signal.Signals | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        if stop is not None:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(stop)
            command.stop_handled()
        callback_fails(kind)

    if kind in ("RuntimeError", "SystemError"):
        with pytest.raises((RuntimeError, SystemError), match="a callback failed"):
            command.run(broken)
        return
    assert command.run(broken) == 2
    subject = "tokenizer: fails (" if kind == "guarded" else "a file: "
    told = capsys.readouterr().err
    assert (told.startswith(f"error: {subject}a callback failed"), told.count("\n")) == (True, 1)


@pytest.mark.parametrize(("reason", "code"), [(errno.EPIPE, 141), (errno.ENOSPC, 2)])
def test_a_stdout_that_fails_after_a_stop_keeps_its_code(
    reason: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> int:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        try:
            callback_fails("guarded")
        finally:
            raise OSError(reason, os.strerror(reason), STDOUT)

    assert command.run(stopped) == code
    told = capsys.readouterr().err
    full = "error: stdout: cannot be written (No space left on device)\n"
    assert told == ("" if code == 141 else full)


def test_a_stop_that_a_source_makes_an_error_of_ends_the_stream_as_a_stop(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The frames before are kept, and the source is not told to be lost."""
    read = VideoFile.__next__

    def stopped(self: VideoFile) -> Frame:
        frame = read(self)
        if frame.index == 2:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            with guarded("video", "cannot be read", error=VideoError):
                callback_fails("RuntimeError")
        return frame

    monkeypatch.setattr(VideoFile, "__next__", stopped)
    out = tmp_path / "o.json"
    flags = ["--video", str(CLIP), "--json", str(out)]
    assert run_command.main([str(demo_bundle), *flags]) == 0
    document = json.loads(out.read_text())
    assert (document["ended_by"], document["summary"]["frames"]) == ("interrupt", 2)
    told = capsys.readouterr().err
    assert "interrupted; this is the stream so far" in told
    assert "error" not in told


def test_a_stop_that_is_ignored_stays_ignored() -> None:
    """As `nohup` has it."""

    def frame() -> int:
        with uninterrupted():
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        return 0

    outside = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command.run(frame) == 0
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_terminal_that_is_closed_costs_no_results(demo_bundle: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    flags = ["--video", CLIP, "--json", tmp_path / "o.json"]
    words = [*script_of("stc-run"), demo_bundle, *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *map(str, words)],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"reference" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(60) == 0
    assert json.loads((tmp_path / "o.json").read_text())["summary"]["frames"] < 200


def test_a_reader_of_stdout_that_goes_away_ends_a_command_quietly(
    demo_bundle: Path, tmp_path: Path
) -> None:
    flags = ["--video", CLIP, "--frames", 3, "--json", "-"]
    with start(tmp_path, "stc-run", demo_bundle, *flags) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def test_help_may_be_cut_short(tmp_path: Path) -> None:
    with start(tmp_path, "stc-run", "--help") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=60)
    # argparse itself hides the error where stdout is not buffered.
    assert (process.returncode in {0, 141}, stderr) == (True, "")


def test_a_full_stdout_is_one_line(demo_bundle: Path, tmp_path: Path) -> None:
    result = run(
        tmp_path, "stc-run", demo_bundle, "--video", CLIP, "--frames", 2, "--json", "/dev/full"
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --json /dev/full: cannot be written")
    assert "Traceback" not in result.stderr


def test_other_threads_are_never_interrupted_and_need_no_guard() -> None:
    ran = []

    def guarded() -> None:
        with uninterrupted():
            ran.append(True)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    assert ran == [True]
