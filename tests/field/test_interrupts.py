"""Ctrl-C at any moment is an interrupt: one line, exit 130 and no traceback.

Python made errors of it: "cannot be loaded, install it" when it met a module of C that was being
imported, tracebacks when the command's own modules were.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stc.engines.build.builders import Builders, BuildProgress
from stc.shell import command
from stc.shell.command import Console
from tests.as_user import CLIP, MODULES, ROOT, standing, start

INTERRUPTED = "interrupted; nothing was written\n"

STOPPED_AT_AN_IMPORT = """
import os, signal, sys
from importlib.machinery import ExtensionFileLoader

awaited, name = sys.argv[1:3]
del sys.argv[1:3]
create = ExtensionFileLoader.create_module

class Stop:
    "Sends SIGINT when the module that is awaited is looked for, if it is one of Python."
    def find_spec(self, name, path=None, target=None):
        if name == awaited and self in sys.meta_path:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

def stopped(self, spec):
    "One of C makes an ImportError of what its initialisation meets."
    if spec.name == awaited:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("KeyboardInterrupt: ")
    return create(self, spec)

if awaited.endswith("!"):
    awaited = awaited[:-1]
    ExtensionFileLoader.create_module = stopped
else:
    sys.meta_path.insert(0, Stop())
from stc import entry

sys.exit(getattr(entry, name)())
"""


@pytest.mark.parametrize(
    ("command_name", "module"),
    [
        ("stc-run", "pydantic"),
        ("stc-run", "numpy._core._multiarray_umath!"),
        ("stc-run", "pydantic_core._pydantic_core!"),
        ("stc-run", "av.error!"),
        ("stc-run", "PIL._imaging!"),
        ("stc-run", "tokenizers.tokenizers!"),
        ("stc-run", "onnxruntime"),
        ("stc-run", "onnxruntime.capi.onnxruntime_pybind11_state!"),
        ("stc-doctor", "onnxruntime.capi.onnxruntime_pybind11_state!"),
        ("stc-bench", "onnxruntime.capi.onnxruntime_pybind11_state!"),
        ("stc-parity", "torch._C!"),
        ("stc-export", "torch._C!"),
    ],
)
def test_an_interrupt_while_something_is_imported_is_an_interrupt(
    command_name: str, module: str, demo_bundle: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the seconds in which nothing shows yet; `!` marks modules of C."""
    flags: dict[str, list[object]] = {
        "stc-run": [demo_bundle, "--video", CLIP, "--ask", "What?", "--json", "o.json"],
        "stc-export": ["--model", "demo", "--output", "bundle"],
    }
    words = flags.get(command_name, [demo_bundle])
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_AN_IMPORT, module, command_name.removeprefix("stc-")]
        + [str(word) for word in words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr
    if "this is the stream so far" in done.stderr:
        # What is imported last: the stream may have begun when the interrupt is heard.
        assert (done.returncode, command_name) == (0, "stc-run")
        return
    assert done.stderr == INTERRUPTED, done.stderr[-2_000:]
    # CPython dies of the signal itself where what was interrupted is a string given to exec.
    assert done.returncode in {130, -signal.SIGINT}
    assert standing(tmp_path) == {}


@pytest.mark.parametrize("name", MODULES)
def test_an_interrupt_at_any_time_leaves_no_traceback(
    name: str, demo_bundle: Path, tmp_path: Path
) -> None:
    """From the first line of the command on. Before, it is Python's own to answer."""
    flags: dict[str, list[object]] = {
        "stc-run": [demo_bundle, "--video", CLIP, "--ask", "What?"],
        "stc-export": ["--model", "demo", "--output", "bundle"],
        "stc-build": [demo_bundle, "--target", "sm89"],
        "stc-plan": [demo_bundle, "--target", "sm89"],
        "stc-eval": [demo_bundle, "--data", f"clip:{CLIP}", "--frames", 8],
    }
    delays_s = [0.0, 0.1, 0.3, 1.0]
    # All at once: they wait most of the time, and a busy machine is one more thing that happens.
    running = [start(tmp_path, name, *flags.get(name, [demo_bundle])) for _ in delays_s]
    for process in running:
        while not _hears_hangups(process.pid) and process.poll() is None:
            time.sleep(0.005)
    started = time.monotonic()
    for delay_s, process in zip(delays_s, running, strict=True):
        time.sleep(max(0.0, started + delay_s - time.monotonic()))
        process.send_signal(signal.SIGINT)
    said = [process.communicate(timeout=300)[1] for process in running]
    for process, stderr in zip(running, said, strict=True):
        # What was done before: a stream so far, a diagnosis, a bundle that cannot be built.
        assert process.returncode in {0, 1, 2, 130, -signal.SIGINT}
        assert "Traceback" not in stderr
        assert "KeyboardInterrupt" not in stderr
        assert "install" not in stderr
        if process.returncode == 130:
            folder = f"out/eval/bundle-{Path(CLIP).stem}"
            kept = f"interrupted; finished scenes are in {folder}, the same command goes on"
            ends = [INTERRUPTED.strip(), *([kept] if name == "stc-eval" else [])]
            assert stderr.splitlines()[-1] in ends


def _hears_hangups(process: int) -> bool:
    """Whether `process` minds SIGHUP, which Python itself does not."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) & 1 << signal.SIGHUP - 1)
    return False


def test_an_interrupt_that_a_destructor_swallows_comes_again() -> None:
    """Python prints what a destructor raises and goes on as if nothing had been asked."""

    class Held:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def body() -> int:
        Held()
        time.sleep(20)
        return 0

    assert command.run(body) == 130


def test_an_interrupt_while_the_first_is_told_is_none_too_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is in a hurry presses Ctrl-C twice."""

    def body() -> int:
        raise KeyboardInterrupt

    def impatient(text: str) -> int:
        signal.raise_signal(signal.SIGINT)
        return len(text)

    monkeypatch.setattr(sys.stderr, "write", impatient)
    assert command.run(body) == 130


def test_builders_that_start_say_nothing_of_an_interrupt(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C reaches all processes of a terminal; the one that owns the engines decides."""

    with Builders("tensorrt-rtx", 2, BuildProgress(0, Console(stderr=True))) as builders:
        processes = list(builders._processes.values())
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("stop", command.STOPS)
def test_an_interrupt_that_is_ignored_stays_ignored_from_the_start(
    stop: signal.Signals, tmp_path: Path
) -> None:
    """`nohup`, and what a shell's script starts in the background."""
    code = (
        "import os, signal, sys\n"
        f"signal.signal({int(stop)}, signal.SIG_IGN)\n"
        "from stc.shell import command\n"
        "def body():\n"
        f"    os.kill(os.getpid(), {int(stop)})\n"
        "    return 0\n"
        "sys.exit(command.run(body))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
