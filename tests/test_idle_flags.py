"""A flag that would change nothing is refused in one line, before anything is opened."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import eval as eval_command
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import run as run_command
from stc.runtime.stream import opening
from stc.runtime.stream.opening import MAX_HELD

Outcome = subprocess.CompletedProcess[str]

MAINS = {
    "stc-run": run_command.main,
    "stc-bench": bench_command.main,
    "stc-parity": parity_command.main,
    "stc-eval": eval_command.main,
}
TENSORRT = ["--device", "cuda", "--backend", "tensorrt"]
IDLE = "--device cuda: --backend tensorrt, expected --backend onnxruntime; leave one out"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stc-run", "B", "--video", "V", *TENSORRT], IDLE),
        (["stc-bench", "B", *TENSORRT], IDLE),
        (["stc-parity", "B", *TENSORRT], IDLE),
        (["stc-eval", "B", *TENSORRT], IDLE),
        (
            ["stc-bench", "B", "--checkpoint", "X"],
            "--checkpoint: requires --against torch",
        ),
        (
            ["stc-bench", "B", "--prefill", "--against", "int4", "--checkpoint", "X"],
            "--checkpoint: requires --against torch",
        ),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(
    words: list[str], told: str, run_main: Callable[..., Outcome]
) -> None:
    done = run_main(MAINS[words[0]], *words[1:])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {told}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["stc-bench", "B", "--prefill", "--int4", "--device", "cuda"],
        ["stc-bench", "B", "--prefill", "--against", "int4", *TENSORRT],
        ["stc-bench", "B", "--against", "torch", "--checkpoint", "X"],
        ["stc-run", "B", "--video", "V", "--int4", "--ask", "what", *TENSORRT],
    ],
)
def test_a_flag_that_changes_something_is_not(
    words: list[str], run_main: Callable[..., Outcome]
) -> None:
    done = run_main(MAINS[words[0]], *words[1:])
    assert done.stderr.startswith("error: B: no such directory")


def test_no_more_frames_are_held_than_fit() -> None:
    assert len(opening.frames(None, 3)) == 3
    assert len(opening.frames(None, 100_000)) == MAX_HELD == 32
