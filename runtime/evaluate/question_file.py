"""A file of questions to one video: when each is asked, and what is right then."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from stc.errors import SettingsError
from stc.runtime.answers.questions import Question
from stc.runtime.evaluate.benchmarks.entries import Entry, json_entries
from stc.shell.ranges import shown

FIELDS = ("at_s", "question", "expected")
_FIX = 'write [{"at_s": 12.5, "question": "...", "expected": "..."}]'


def read_questions(path: Path) -> list[Question]:
    """What the file at `path` asks: a JSON list of objects with `at_s`, the seconds from the
    stream's first frame, `question`, and `expected` where the right answer is known.

    Raises SettingsError, which names the entry and the field, for anything else.
    """
    return [_question(entry) for entry in json_entries(path, _FIX, "--questions")]


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """`path` holds `questions` as `read_questions` reads them. Raises OSError."""
    listed = [
        {"at_s": one.at_s, "question": one.text}
        | ({} if one.expected is None else {"expected": one.expected})
        for one in questions
    ]
    path.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _instead(name: str, entry: Entry) -> str:
    """What to do about a field called `name`, which there is not."""
    left = [field for field in FIELDS if field not in entry.values]
    near = get_close_matches(name, left, n=1)
    return f"call it {near[0]}" if near else "leave it out, or correct its name"


def _question(entry: Entry) -> Question:
    for name in entry.values:
        if name not in FIELDS:
            got = f"unknown field {shown(name)}"
            raise SettingsError(entry.place, got, " or ".join(FIELDS), _instead(name, entry))
    expected = entry.text("expected") if "expected" in entry.values else None
    return Question(entry.text("question"), entry.seconds("at_s"), expected)
