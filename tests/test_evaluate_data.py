"""What `stc-eval` is measured on: its digest, its questions, what makes an answer right."""

from __future__ import annotations

from typing import Any

import pytest

from stc.errors import SettingsError
from stc.runtime.evaluate import data as evaluate_data
from tests.made_scenes import QUESTIONS, MadeScene, made_scenes


def test_a_question_about_a_frame_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="scene 0 is asked at frame 4, expected 0 to 2"):
        evaluate_data.scenes("made", [(MadeScene(0, count=3), QUESTIONS)], None)


def test_the_datas_digest_is_of_all_frames_and_questions() -> None:
    def digest(scenes: Any, limit: int | None = None) -> str:
        return evaluate_data.scenes("made", scenes, limit).digest

    pairs = made_scenes()
    known = digest(pairs)
    assert digest(made_scenes()) == known == digest(pairs, 1)
    assert digest(pairs[::-1]) != known
    assert digest([(MadeScene(0), QUESTIONS), (MadeScene(1), QUESTIONS[:2])]) != known
    assert digest([(MadeScene(0), QUESTIONS), (MadeScene(2), QUESTIONS)]) != known


@pytest.mark.parametrize(
    ("answer", "right"),
    [("A", True), (" a.\n", True), ("A. ", True), ("B", False), ("", False), ("A B", False)],
)
def test_what_is_right(answer: str, right: bool) -> None:
    assert evaluate_data.exact(QUESTIONS[1], answer) is right
