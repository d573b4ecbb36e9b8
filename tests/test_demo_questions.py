"""The questions of `./scripts/demo`: of the scenes' closed vocabulary, at moments there are."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from stc.runtime.answers.questions import Question
from stc.runtime.evaluate.question_file import read_questions
from stc.scenes.words import LETTERS, QUESTIONS, stems
from tests.as_user import CLIP, ROOT
from tests.clips import read_frames

STREET = ROOT / "tests" / "data" / "street-questions.json"
ANSWERS = {
    stem: kind.answers
    for kind in QUESTIONS.values()
    for stem in stems()
    if any(
        re.fullmatch(re.sub(r"\\\{\w+\\\}", r".+", re.escape(one)), stem) for one in kind.wordings
    )
}


def known(question: Question) -> bool:
    """Whether the demo model understands `question` and can give what is expected."""
    stem, _, rest = question.text.partition(" A. ")
    expected = question.expected
    if not rest:
        return expected in ANSWERS[stem]
    options = re.split(r" [BCD]\. ", rest)
    letters = LETTERS[: len(options)]
    return expected in letters and set(options) <= set(ANSWERS[stem])


def test_every_question_of_the_street_can_be_answered() -> None:
    asked = read_questions(STREET)
    assert 10 <= len(asked) <= 16
    assert all(known(one) for one in asked)
    answers = [one.expected for one in asked]
    assert max(answers.count(one) for one in set(answers)) <= len(asked) / 2


def test_each_is_asked_at_a_frame_of_its_own_moment() -> None:
    """At two frames a second of a clip of five, frames come up to 0.1 s late."""
    times = [frame.time_s for frame in read_frames(CLIP, fps=2)]
    for one in read_questions(STREET):
        assert one.at_s is not None
        assert 0 <= next(time for time in times if time >= one.at_s) - one.at_s < 0.15


@pytest.mark.parametrize("empty_s", [27.5, 28.0])
def test_nothing_moves_where_nothing_is_said_to(empty_s: float) -> None:
    frames = [one for one in read_frames(CLIP, fps=2) if empty_s - 0.6 < one.time_s < empty_s + 0.2]
    assert len(frames) >= 2
    for one, other in itertools.pairwise(frames):
        part, before = (frame.rgb[140:300, 352:512].astype(int) for frame in (other, one))
        assert abs(part - before).max() < 40


def test_the_script_names_what_is_there() -> None:
    script = (ROOT / "scripts" / "demo").read_text()
    assert str(STREET.relative_to(ROOT)) in script
    assert str(Path(CLIP).relative_to(ROOT)) in script
    assert "--crop 352,140,160,160" in script
