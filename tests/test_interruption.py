"""A user who stops a command, or what reads its output: no traceback, nothing half-written."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from stc.command import uninterrupted
from tests.as_user import CLIP, frames_of, run, standing, start


def test_ctrl_c_ends_a_stream_with_all_it_was_asked_for(demo_bundle: Path, tmp_path: Path) -> None:
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    with start(tmp_path, "stc-run", demo_bundle, "--video", CLIP, *outputs) as process:
        assert process.stderr is not None
        assert "frame 0" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (0, ""), stderr
    assert "interrupted; this is the stream so far" in stderr
    assert "Traceback" not in stderr
    frames = json.loads((tmp_path / "o.json").read_text())["summary"]["frames"]
    assert 1 <= frames < 200
    assert f"\n{frames} frames" in stderr
    assert frames_of(tmp_path / "o.mp4") == frames
    assert set(standing(tmp_path)) == {"o.mp4", "o.png", "o.json"}


def test_ctrl_c_during_an_export_leaves_nothing(tmp_path: Path) -> None:
    command = ["stc-export", "--model", "demo", "--output", "bundle"]
    with start(tmp_path, *command) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".bundle*/graphs/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert standing(tmp_path)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    # CPython dies of the signal itself when what was interrupted is a string given to exec, as in
    # torch's tracing. To a shell both are 130.
    assert process.returncode in {130, -signal.SIGINT}
    assert stderr == "interrupted; nothing was written\n"
    assert standing(tmp_path) == {}


def test_ctrl_c_waits_for_the_end_of_a_frame() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("frame")
    assert done == ["frame"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_a_command_quietly(
    stream: str, demo_bundle: Path, tmp_path: Path
) -> None:
    flags = ["--video", CLIP, "--frames", 3, "--json", "-", "--overlay", "o.mp4"]
    with start(tmp_path, "stc-run", demo_bundle, *flags) as process:
        getattr(process, stream).close()
        setattr(process, stream, None)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "Traceback" not in (stderr or "")
    assert "BrokenPipe" not in (stderr or "")
    if stream == "stderr":
        assert standing(tmp_path) == {}


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
