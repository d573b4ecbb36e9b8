"""What others wrote - a manifest, a file's name, a model - reaches a terminal as text alone.

A terminal obeys escape sequences: they clear the screen, set its title, type for the user.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc.errors import StcError
from stc.manifest import MANIFEST
from stc.prompts.prompt import TextStream
from stc.shell.command import Console
from tests.as_user import CLIP
from tests.test_help import MAINS
from tests.tiny_bundle import write_bundle

Outcome = subprocess.CompletedProcess[str]

CLEAR = "\x1b[2J"
TITLE = "\x1b]0;gone\x07"
BACKWARDS = "\u202egnp.exe"
HOSTILE = [CLEAR, TITLE, "\x9b2J", "\b\b\b\x7f", "one\rtwo", BACKWARDS, "\u2028error: forged"]
LONGEST = 2_200
"""Characters of a line at most."""


def is_fit(text: str) -> bool:
    """Whether a terminal shows `text` and does nothing else, line by line."""
    reordering = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any(
        letter in reordering or unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"}
        for letter in text.replace("\n", "")
    )


@given(st.text(), st.text(), st.text(), st.text())
def test_an_error_is_one_printable_line(subject: str, got: str, expected: str, fix: str) -> None:
    line = str(StcError(subject, got, expected, fix))
    assert is_fit(line)
    assert "\n" not in line
    assert len(line.splitlines()) == 1
    assert len(line) < LONGEST


def test_an_error_of_99_megabytes_is_a_line_with_its_start_and_end() -> None:
    """The value of a manifest's field, shown with its error, filled a terminal for minutes."""
    line = str(StcError("manifest.json", "got " + "x" * 99_000_000, "less", "export it again"))
    assert len(line) < LONGEST
    assert line.startswith("manifest.json: got xxx")
    assert line.endswith("x, expected less; export it again")


def test_letters_of_any_script_stay_as_they_are() -> None:
    for name in ("straße.mp4", "통화 녹음.mp4", "می‌خواهم", "👩‍🚒.mp4", "e\u0301té", "a\u00a0b"):
        assert name.replace("\u00a0", " ") in str(StcError(name, "no such file")).replace(
            "\u00a0", " "
        )


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["stc-run", "stc-parity", "stc-bench", "stc-eval", "stc-build"])
def test_a_name_with_control_characters_is_shown_not_obeyed(
    command: str, name: str, run_main: Callable[..., Outcome]
) -> None:
    needed = {"stc-run": ["--video", "V"], "stc-build": ["--target", "sm89"]}
    done = run_main(MAINS[command], name, *needed.get(command, []))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert is_fit(done.stderr)
    assert "error: " in done.stderr


def test_a_manifests_text_is_shown_not_obeyed(
    tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """`stc-doctor` prints what a bundle says of itself, and a bundle may come from anybody."""
    bundle = write_bundle(tmp_path / "bundle")
    document = json.loads((bundle / MANIFEST).read_text())
    document["provenance"]["checkpoint"] = "".join(HOSTILE) + "x" * 100_000
    (bundle / MANIFEST).write_text(json.dumps(document))
    done = run_main(MAINS["stc-doctor"], bundle)
    assert is_fit(done.stdout + done.stderr)
    [line] = [line for line in done.stdout.splitlines() if "  bundle: " in line]
    assert len(line) < LONGEST


def test_a_videos_name_is_shown_not_obeyed(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """`stc-parity` says which frames it compared, on stdout; and the stream goes by its name."""
    video = shutil.copy(CLIP, tmp_path / f"{CLEAR}clip{BACKWARDS}.mp4")
    flags = ["--video", video, "--frames", "2", "--vision-only"]
    done = run_main(MAINS["stc-parity"], demo_bundle, *flags)
    assert done.returncode == 0, done.stderr
    assert is_fit(done.stdout + done.stderr)
    assert "\\x1b[2Jclip\\u202e" in done.stdout


def test_an_answer_is_shown_not_obeyed_and_exact_in_the_document(
    talkative_demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., Outcome],
) -> None:
    """A model that was shown a hostile sign in a video may well repeat it."""
    pieces = iter([CLEAR, "ja\n\tund ", TITLE, BACKWARDS, *"abcdefgh"])
    monkeypatch.setattr(TextStream, "step", lambda *_: next(pieces, ""))
    monkeypatch.setattr(TextStream, "finish", lambda *_: "")
    flags = ["--video", CLIP, "--frames", "1", "--max-new-tokens", "5", "--ask", f"what{CLEAR}?"]
    done = run_main(MAINS["stc-run"], talkative_demo_bundle, *flags, "--json", tmp_path / "o.json")
    assert is_fit(done.stdout.replace("\t", ""))
    assert "what\\x1b[2J?\n> \\x1b[2Jja\n\tund \\x1b]0;gone\\x07\\u202egnp.exe" in done.stdout
    document = json.loads((tmp_path / "o.json").read_text())
    [question] = document["language"]["questions"]
    assert question["question"] == f"what{CLEAR}?"
    assert question["answer"].startswith(f"{CLEAR}ja\n\tund {TITLE}{BACKWARDS}")


def test_what_is_said_beside_the_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Console(stderr=True).say(f"{CLEAR}\nerror: forged [bold]{'x' * 100_000}")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("\\x1b[2J\\nerror: forged [bold]xxx")
    assert len(line) < LONGEST
