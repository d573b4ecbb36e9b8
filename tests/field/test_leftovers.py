"""What a killed writer leaves in a user's folder is cleared away, and nothing else ever is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stc.engines.library.library import replace_file
from stc.runtime.output import whole_file
from tests.as_user import CLIP, start

WAIT_S = 60.0

WRITING = """
import sys
from pathlib import Path
from stc.runtime.output import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"from the other")
    file.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing `path`; a line on its stdin lets it finish."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def wait_until(held: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not held():
        assert time.monotonic() < end
        time.sleep(0.02)


def write(path: Path, content: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(content)


def write_engine(path: Path) -> None:
    replace_file(path, memoryview(b"new"))


def test_the_next_run_clears_what_a_killed_run_left(demo_bundle: Path, tmp_path: Path) -> None:
    """Out of memory, power lost, `kill -9`: the overlay and the document were half written."""
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    with start(tmp_path, "stc-run", demo_bundle, "--video", CLIP, *outputs) as process:
        wait_until(lambda: len(names(tmp_path)) == 2 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=WAIT_S)
    assert len(names(tmp_path)) == 2
    assert all(name.startswith(".o.") for name in names(tmp_path))
    write(tmp_path / "other.json")
    assert names(tmp_path) == {"other.json"}


@pytest.mark.parametrize("writes", [write, write_engine])
def test_whoever_writes_next_clears_the_folder(
    writes: Callable[[Path], None], tmp_path: Path
) -> None:
    """A stream's outputs and a build's engines alike."""
    with writer(tmp_path / "o.mp4") as process:
        process.kill()
        process.wait(WAIT_S)
    assert len(names(tmp_path)) == 1
    writes(tmp_path / "mine")
    assert names(tmp_path) == {"mine"}


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    """Two cameras, two runs, one folder."""
    with writer(tmp_path / "other.mp4") as process:
        before = names(tmp_path)
        for _ in range(3):
            write(tmp_path / "mine")
        assert names(tmp_path) == before | {"mine"}
        process.communicate("\n", timeout=WAIT_S)
    assert process.returncode == 0
    assert names(tmp_path) == {"mine", "other.mp4"}
    assert (tmp_path / "other.mp4").read_bytes() == b"from the other"


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    """A service started twice: the last to finish wins, neither sees the other's bytes."""
    with writer(tmp_path / "o.json") as process:
        write(tmp_path / "o.json", b"x" * 100_000)
        assert (tmp_path / "o.json").read_bytes() == b"x" * 100_000
        process.communicate("\n", timeout=WAIT_S)
    assert (tmp_path / "o.json").read_bytes() == b"from the other"
    with whole_file(tmp_path / "o.json") as one, whole_file(tmp_path / "o.json") as two:
        one.write(b"one")
        two.write(b"two")
    assert (tmp_path / "o.json").read_bytes() == b"one"
    assert names(tmp_path) == {"o.json"}


def test_a_users_files_of_like_names_stay(tmp_path: Path) -> None:
    """Split archives, unfinished downloads, notes, folders and links."""
    alive = f".o.mp4.{os.getpid()}.part"
    users = {
        "o.mp4.part",
        ".o.mp4.part",
        ".archive.2024.part",
        ".o.mp4.notes.part",
        "o.mp4.4194304.part",
        ".stc-part",
        ".o.mp4.stc-part",
        "o.mp4.0123abcd.stc-part",
        alive,
    }
    for name in users:
        (tmp_path / name).write_text("the user's")
    (tmp_path / ".o.mp4.00000000.stc-part").mkdir()
    (tmp_path / ".o.mp4.00000001.stc-part").symlink_to(tmp_path / "o.mp4.part")
    before = names(tmp_path)
    write(tmp_path / "o.mp4")
    assert names(tmp_path) == before | {"o.mp4"}
    assert all((tmp_path / name).read_text() == "the user's" for name in users)


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path: Path) -> None:
    """Downloads named after a whole sentence, in any script."""
    for name in ("x" * 255, "é" * 127):
        write(tmp_path / name)
        assert names(tmp_path) == {name}
        (tmp_path / name).unlink()
