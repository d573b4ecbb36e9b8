"""Disks that are full, readers that went away, terminals that hung up: results are kept."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stc.engines.library.library import replace_file
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import run as run_command
from stc.shell import command
from tests.as_user import CLIP, ROOT, frames_of, standing
from tests.clips import numbered_clip
from tests.language_cases import language_case
from tests.own_process import script_of

Streams = dict[str, Any]


@contextmanager
def full() -> Iterator[int]:
    """A disk without space."""
    descriptor = os.open("/dev/full", os.O_WRONLY)
    yield descriptor
    os.close(descriptor)


@contextmanager
def unread() -> Iterator[int]:
    """A pipe whose reader went away: `| head`, a log collector that crashed."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def hung_up() -> Iterator[int]:
    """A terminal that is gone: writing to it is an input/output error."""
    ours, theirs = pty.openpty()
    os.close(ours)
    yield theirs
    os.close(theirs)


@contextmanager
def closed() -> Iterator[None]:
    """Not open at all: `2>&-`, some supervisors."""
    yield None


DEAD = {"full": full, "unread": unread, "hung up": hung_up, "closed": closed}


def outcome(
    folder: Path, command: str, *arguments: object, dead: int, how: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`command` when it has ended, its descriptor `dead` being what `how` says."""
    with DEAD[how]() as descriptor:
        streams: Streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        name = {1: "stdout", 2: "stderr"}[dead]
        words = [sys.executable, *script_of(command), *map(str, arguments)]
        if descriptor is None:
            words = ["sh", "-c", f'exec "$@" {dead}>&-', "sh", *words]
            streams[name] = subprocess.DEVNULL
        else:
            streams[name] = descriptor
        return subprocess.run(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            timeout=300,
            **streams,
            **options,
        )


@pytest.fixture
def small_bundle() -> Path:
    return language_case().bundle.root


@pytest.mark.parametrize("how", DEAD)
def test_a_dead_stderr_costs_no_result(how: str, small_bundle: Path, tmp_path: Path) -> None:
    """A full log disk on the device: the stream, its overlay, its answer and its document."""
    flags = ["--video", CLIP, "--frames", 2, "--overlay", "o.mp4", "--json", "o.json"]
    asked = ["--ask", "What is moving?", "--max-new-tokens", 2]
    done = outcome(tmp_path, "stc-run", small_bundle, *flags, *asked, dead=2, how=how)
    assert done.returncode == 0
    assert json.loads((tmp_path / "o.json").read_text())["summary"]["frames"] == 2
    assert frames_of(tmp_path / "o.mp4") == 2
    assert set(standing(tmp_path)) == {"o.mp4", "o.png", "o.json"}
    # Nothing that is said to a person strays into what a program reads.
    assert done.stdout.startswith("[0.2 s] What is moving?\n> ")
    assert "frames" not in done.stdout


@pytest.mark.parametrize(
    ("command", "flags", "how", "code"),
    [
        ("stc-bench", ["--frames", 2], "closed", 0),
        ("stc-doctor", ["--json"], "closed", 0),
        ("stc-build", ["--target", "sm1"], "closed", 2),
    ],
)
def test_a_dead_stderr_changes_no_commands_outcome(
    command: str, flags: list[object], how: str, code: int, small_bundle: Path, tmp_path: Path
) -> None:
    done = outcome(tmp_path, command, small_bundle, *flags, dead=2, how=how)
    assert done.returncode == code
    if code == 0:
        assert json.loads(done.stdout.splitlines()[-1])
    else:
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("full", 2, "error: stdout: cannot be written (No space left on device)"),
        ("unread", 141, ""),
        ("hung up", 2, "error: stdout: cannot be written (Input/output error)"),
        ("closed", 2, "error: stdout: cannot be written (Bad file descriptor)"),
    ],
)
def test_a_dead_stdout_costs_no_file(
    how: str, code: int, told: str, small_bundle: Path, tmp_path: Path
) -> None:
    """Answers that nobody reads any more: overlay and document are kept, the exit code tells."""
    flags = ["--video", CLIP, "--frames", 2, "--overlay", "o.mp4", "--json", "o.json"]
    asked = ["--ask-at", "0:What is moving?", "--max-new-tokens", 2]
    done = outcome(tmp_path, "stc-run", small_bundle, *flags, *asked, dead=1, how=how)
    assert done.returncode == code, done.stderr
    assert [line for line in done.stderr.splitlines() if "error" in line] == [told] * bool(told)
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "o.json").read_text())["summary"]["frames"] == 2
    assert frames_of(tmp_path / "o.mp4") == 2
    assert set(standing(tmp_path)) == {"o.mp4", "o.png", "o.json"}


@pytest.mark.parametrize("flag", ["--json", "--overlay"])
def test_an_output_that_leads_to_itself_is_one_line(
    flag: str, small_bundle: Path, tmp_path: Path, run_main: Callable[..., Any]
) -> None:
    """A link that somebody made to its own name."""
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    flags = ["--video", str(CLIP), "--frames", "1", flag, str(tmp_path / "loop.mp4")]
    done = run_main(run_command.main, small_bundle, *flags)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "loop.mp4" in line


def test_a_dead_stdout_hides_no_other_error(small_bundle: Path, tmp_path: Path) -> None:
    """A video cut short, and nobody to give the document to: both are told."""
    clip = numbered_clip(tmp_path, options={"movflags": "faststart"})
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 3 // 4])
    flags = ["--video", clip, "--fps", 1, "--json", "-"]
    done = outcome(tmp_path, "stc-run", small_bundle, *flags, dead=1, how="full")
    assert done.returncode == 2
    assert "ended early" in done.stderr
    assert "error: stdout: cannot be written" in done.stderr


@contextmanager
def own_stdout(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`descriptor` is this process's stdout."""
    before = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        with open(1, "w", closefd=False) as stdout, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stdout)
            yield
    finally:
        os.dup2(before, 1)
        os.close(before)


def test_a_dead_stdout_costs_parity_no_document(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The table is on stdout, and stands before the document is written."""
    flags = ["--frames", "2", "--vision-only", "--json", str(tmp_path / "o.json")]
    with full() as descriptor, own_stdout(descriptor, monkeypatch):
        assert parity_command.main([str(demo_bundle), *flags]) == 2
    told = "error: stdout: cannot be written (No space left on device)\n"
    assert capsys.readouterr().err.endswith(told)
    assert json.loads((tmp_path / "o.json").read_text())["passed"]


def test_files_do_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """The first file that is opened would be descriptor 2, which libraries write messages to."""
    code = (
        "import os, sys\n"
        "from stc.shell import command\n"
        "def body():\n"
        f"    with open({str(tmp_path / 'kept')!r}, 'w') as file:\n"
        "        os.write(2, b'a library that warns\\n')\n"
        "        print('for a person', file=sys.stderr)\n"
        "        file.write('kept')\n"
        "    return 0\n"
        "sys.exit(command.run(body))\n"
    )
    words = ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(words, cwd=ROOT).returncode == 0
    assert (tmp_path / "kept").read_text() == "kept"


def _no_larger_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("limit", [None, _no_larger_files], ids=["full", "limit"])
def test_a_stdout_that_takes_no_more_is_named(
    limit: Callable[[], None] | None, tmp_path: Path
) -> None:
    """`stc-doctor --json > file` on a full disk, or past `ulimit -f`."""
    reason = "No space left on device" if limit is None else "File too large"
    target = "/dev/full" if limit is None else tmp_path / "out"
    with Path(target).open("wb") as out:
        done = subprocess.run(
            [sys.executable, *script_of("stc-doctor"), "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )
    assert done.returncode == 2
    assert done.stderr == f"error: stdout: cannot be written ({reason})\n"


def test_a_full_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    """A program that shares the pipe may have made it so; Python then loses what it writes."""
    code = (
        "import os, sys\n"
        "os.set_blocking(1, False)\n"
        "from stc.shell import command\n"
        "def body():\n"
        "    print('x' * 1_000_000)\n"
        "    return 0\n"
        "sys.exit(command.run(body))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1_000_001, "")


def test_an_engine_that_fits_no_more_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fills up says so when the last bytes go out, and names no file."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def body() -> int:
        replace_file(tmp_path / "kept", memoryview(b"content"))
        return 0

    monkeypatch.setattr(os, "fsync", full)
    assert command.run(body) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'kept'}: No space left on device\n"
    assert standing(tmp_path) == {}
