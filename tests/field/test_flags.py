"""Command lines as scripts and slips of the hand make them: one line that names the flag, exit 2.

Flags are asked of the commands' own parsers, so that one added tomorrow is tried as well.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stc.manifest import MAX_POSITIONS
from stc.runtime.video.source.source import LAST_INDEX
from stc.shell.ranges import MAX_COUNT, number_flag
from tests.test_help import MAINS, parser_of

Outcome = subprocess.CompletedProcess[str]

LONGEST = 2_200
"""Characters of an error line at most."""
REQUIRED = {
    "stc-export": ["--model", "demo"],
    "stc-build": ["B", "--target", "sm89"],
    "stc-run": ["B", "--video", "V"],
    "stc-parity": ["B"],
    "stc-bench": ["B"],
    "stc-eval": ["B"],
    "stc-plan": ["B", "--target", "sm89"],
    "stc-doctor": [],
}
"""What each command cannot do without."""

ENDLESS = {
    "thirty digits": "9" * 30,
    "five thousand digits": "1" * 5_000,
    "negative, thirty digits": "-" + "9" * 30,
}
"""What no flag of whole numbers takes, besides NO_NUMBERS."""
NO_NUMBERS = {
    "underscore": "1_0",
    "another script's digit": "٣",
    "blank before": " 5",
    "newline after": "5\n",
    "hexadecimal": "0x10",
    "a word": "many",
    "no value": "--",
    "empty": "",
    "NUL": "1\0",
    "a byte that is no text": "1\udcff",
}
"""What no flag of numbers takes; Python's `int` or `float` takes half of them, or raises."""
SLOW = {"digits that never end well": "1" * 100_000 + "x"}
"""What a careless pattern looks at for minutes."""
NO_WORDS = {"no value": "--", "empty": "", "NUL": "a\0b"}
"""What no flag takes."""


def flags_of(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, argparse.Action]]:
    """The flags of `command` that take a value."""
    with monkeypatch.context() as patched:
        parser = parser_of(MAINS[command], patched)
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            yield action.option_strings[-1], action


def takes_numbers(action: argparse.Action) -> bool:
    return action.type not in (None, Path)


@pytest.mark.parametrize("command", MAINS)
def test_a_value_of_another_type_than_its_flags_never_arrives(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--frames="$N"` where N is unset, digits pasted from elsewhere, `--fps=--`."""
    for flag, action in flags_of(command, monkeypatch):
        values = NO_WORDS
        if takes_numbers(action):
            values = NO_NUMBERS | SLOW
            if action.type is not number_flag:
                values |= ENDLESS
        for case, value in values.items():
            with pytest.raises(SystemExit) as refused:
                MAINS[command]([*REQUIRED[command], f"{flag}={value}"])
            said = capsys.readouterr()
            assert (refused.value.code, said.out) == (2, ""), (flag, case)
            [line] = said.err.splitlines()
            assert line.startswith(f"error: {flag}: "), (flag, case)
            assert len(line) < LONGEST, (flag, case)


@pytest.mark.parametrize("command", MAINS)
def test_flags_are_written_in_full(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--fp 2` of an old script would become another flag's when one of that beginning comes."""
    for flag, action in flags_of(command, monkeypatch):
        value = action.choices[0] if isinstance(action.choices, (list, tuple)) else "1"
        with pytest.raises(SystemExit) as refused:
            MAINS[command]([*REQUIRED[command], f"{flag[:-1]}={value}"])
        said = capsys.readouterr()
        assert refused.value.code == 2
        assert f"unrecognized arguments: {flag[:-1]}={value}; see" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["stc-run", "B", "--video", "V", "--frames", f"{LAST_INDEX + 1}"],
            f"at most {LAST_INDEX}",
        ),
        (["stc-parity", "B", "--frames", "33"], "expected at least 2 and at most 32"),
        (["stc-bench", "B", "--frames", f"{MAX_COUNT + 1}"], f"at most {MAX_COUNT}"),
        (
            ["stc-bench", "B", "--prefill", "--context", f"{MAX_POSITIONS + 1}"],
            f"at most {MAX_POSITIONS}",
        ),
        (["stc-build", "B", "--target", "sm89", "--jobs", "1001"], "at most 1000"),
        (["stc-build", "B", "--target", "sm89", "--jobs", "0"], "at least 1"),
    ],
)
def test_every_count_has_a_most(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip of a zero too many neither runs for ever nor starts a thousand processes."""
    with pytest.raises(SystemExit) as refused:
        MAINS[words[0]](words[1:])
    assert refused.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words[-2]}: got {words[-1]}, expected")
    assert told in line


def test_a_bench_warms_up_for_no_interval_that_never_ends(
    demo_bundle: Path, run_main: Callable[..., Outcome]
) -> None:
    """`--reference-interval 1000000` warmed up for hours and said nothing."""
    done = run_main(MAINS["stc-bench"], demo_bundle, "--reference-interval", "1000000")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --reference-interval: got 1000000, expected at most")


def test_a_value_that_is_shown_makes_no_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for word in ("x\nerror: forged", "x\r\x1b[2Kfine", "x\u2028y", "x" * 100_000):
        with pytest.raises(SystemExit):
            MAINS["stc-doctor"](["B", "--no-such-flag", word])
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: unrecognized arguments: --no-such-flag x")
        assert line.isprintable()
        assert len(line) < LONGEST
