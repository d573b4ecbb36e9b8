"""No command line whatever is answered with a traceback, nor writes where it was not told to.

Flags are those of the commands' own parsers, their values and order made up. STC_FUZZ_SECONDS says
how long to look, 3 by default.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import time
import traceback
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.as_user import standing
from tests.clips import numbered, write_clip
from tests.test_help import MAINS, parser_of

SECONDS = float(os.environ.get("STC_FUZZ_SECONDS", "3"))
CODES = {0, 1, 2, 130, 141}
Words = tuple[str, ...]

ODD_NUMBERS = """
0 1 2 -1 -0 +1 01 00 3.5 .5 1e400 -1e400 1e-400 nan -nan inf -inf Infinity 0x10 1_000 ٣ ½
999999999999999999 9999999999999999999 -99999999999999999999999999999999999
""".split()
NUMBERS = st.one_of(
    st.sampled_from([*ODD_NUMBERS, " 5", "5 ", "5\n", "1" * 5_000, "0." + "0" * 999 + "1"]),
    st.integers().map(str),
    st.floats().map(str),
)
ODD_WORDS = """
- -- --- . .. / // @file = a=b ~ * %s {} [bold] -h -1 file:// http:// rtsp:// ftp://x :// rtsp://[
0: 1:what? 1e400:x nan:x : 1: /dev/full /dev/null /proc/self/mem none/o.mp4
bundle bundle/ ./bundle clip.mp4 o.json o.mp4 o.png
""".split()
TEXTS = st.one_of(
    st.sampled_from(
        [*ODD_WORDS, "", " ", "\0", "\n", "\x1b[2J", "\udcff", "\u202e", "file://\udcff"]
    ),
    st.sampled_from(["x" * 300, "x/" * 2_100]),
    # No path of its own: what is made up stays in the folder of the test.
    st.text(max_size=8).map(lambda text: text.replace("/", "_")),
)


def value_of(action: argparse.Action) -> st.SearchStrategy[str]:
    """Values of a flag, right ones among them."""
    right = [str(choice) for choice in action.choices or ()]
    right += (action.metavar or "").split("|") if isinstance(action.metavar, str) else []
    return st.one_of(NUMBERS, TEXTS, *([st.sampled_from(right)] if right else []))


def line_of(command: str, parser: argparse.ArgumentParser) -> st.SearchStrategy[Words]:
    """Command lines of `command`: some of its flags, in any order, some of them again."""
    pieces: list[st.SearchStrategy[Words]] = [st.tuples(TEXTS)]
    for action in parser._actions:
        if not action.option_strings or action.dest == "help":
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            pieces.append(st.just((flag,)))
            continue
        value = value_of(action)
        pieces.append(value.map(partial(_assigned, flag)))
        pieces.append(st.tuples(st.just(flag), value))
    flags = st.lists(st.one_of(pieces), max_size=6)
    needed: dict[str, list[Words]] = {
        "stc-export": [("--model", "llava-ov"), ("--checkpoint", "missing")],
        "stc-build": [("bundle",), ("--target", "sm89")],
        "stc-plan": [("bundle",), ("--target", "sm89")],
        "stc-run": [("bundle",), ("--video", "clip.mp4"), ("--frames", "1")],
        "stc-parity": [("bundle",), ("--frames", "2"), ("--vision-only",)],
        "stc-bench": [("bundle",), ("--frames", "1")],
        "stc-eval": [("bundle",), ("--data", "clip:clip.mp4"), ("--frames", "1")],
    }
    # What it needs comes first, last or not at all; a count that is repeated stays small.
    rest = needed.get(command, [])
    return st.one_of(
        flags.map(lambda made: _joined([*made, *rest])),
        st.permutations(rest).flatmap(
            lambda known: flags.map(lambda made: _joined([*made, *known]))
        ),
        flags.map(_joined),
    ).map(lambda words: (command, *words))


def _assigned(flag: str, value: str) -> Words:
    return (f"{flag}={value}",)


def _joined(pieces: list[Words]) -> Words:
    return tuple(word for piece in pieces for word in piece)


def outcome(words: Words) -> tuple[object, str]:
    """Exit code and stderr of the command `words`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: object = MAINS[words[0]](list(words[1:]))
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            code = traceback.format_exc()
    return code, err.getvalue()


def test_no_command_line_ends_in_a_traceback(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsers = {}
    for command, main in MAINS.items():
        with monkeypatch.context() as patched:
            parsers[command] = parser_of(main, patched)
    # Whatever is written lands in a folder beside what is read, which stays as it is.
    read = tmp_path / "read"
    shutil.copytree(demo_bundle, read / "bundle")
    write_clip(read / "clip.mp4", [numbered(1), numbered(2)])
    work = tmp_path / "work"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before, tried = standing(read), 0
    end = time.monotonic() + SECONDS

    def fresh() -> None:
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for path in read.iterdir():
            (work / path.name).symlink_to(path)
        monkeypatch.chdir(work)

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(parsers)).flatmap(lambda name: line_of(name, parsers[name])))
    def one(words: Words) -> None:
        nonlocal tried
        if tried and time.monotonic() >= end:
            return
        fresh()
        tried += 1
        code, err = outcome(words)
        assert code in CODES, code
        assert "Traceback" not in err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 if code == 2 else not errors, err
        assert len(max(err.splitlines(), key=len, default="")) < 2_300
        assert standing(read) == before

    while not tried or time.monotonic() < end:
        one()
    print(f"{tried} command lines in {SECONDS:g} s")
