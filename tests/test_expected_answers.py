"""`stc-run --questions`: asked at their moments, compared with what is expected, dense beside."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from stc.errors import DeviceError, LanguageError, SettingsError
from stc.runtime.answers.conversation import Ask, Conversation
from stc.runtime.answers.questions import Question, Questions
from stc.runtime.answers.scoring import is_right
from stc.runtime.commands import runs as runs_command
from stc.runtime.evaluate.question_file import read_questions, write_questions
from stc.runtime.evaluate.reader import EVERYTHING
from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from tests.kept_tokens import POOLED
from tests.language_cases import language_case
from tests.test_answers import stream
from tests.test_run_questions import QUESTION, run

QUICK = ("--fps", "2", "--frames", "4", "--max-new-tokens", "3")


def written(path: Path, *entries: Any) -> str:
    path.write_text(json.dumps(entries), encoding="utf-8")
    return str(path)


def language_of(path: Path) -> Any:
    return json.loads(path.read_text())["language"]


def answer_at(at_s: float, tmp_path: Path) -> str:
    """What the tiny model, whose answers are the same every time, says."""
    out = tmp_path / "known.json"
    assert run(*QUICK, "--ask-at", f"{at_s}:{QUESTION}", "--json", str(out)) == 0
    [asked] = language_of(out)["questions"]
    answer: str = asked["answer"]
    return answer


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("yes", "yes", True),
        (" Yes. ", "yes", True),
        ("A.", "a", True),
        ("yes", "no", False),
        ("", "no", False),
        ("yes it is", "yes", False),
    ],
)
def test_right_is_but_for_blanks_case_and_a_full_stop(
    answer: str, expected: str, right: bool
) -> None:
    assert is_right(answer, expected) is right


def test_answers_are_compared_with_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = answer_at(1, tmp_path)
    loosely = known.swapcase() + "."
    assert known.strip() and known != loosely
    capsys.readouterr()
    file = written(
        tmp_path / "questions.json",
        {"at_s": 1.0, "question": QUESTION, "expected": loosely},
        {"at_s": 1.0, "question": QUESTION, "expected": "something else"},
        {"at_s": 0.5, "question": QUESTION},
    )
    out = tmp_path / "run.json"
    assert run(*QUICK, "--questions", file, "--json", str(out)) == 0
    language = language_of(out)
    first, second, third = language["questions"]
    assert "expected" not in first and "right" not in first and first["frames"] == 2
    assert (second["expected"], second["right"], second["strict"]) == (loosely.strip(), True, False)
    assert (third["expected"], third["right"], third["strict"]) == ("something else", False, False)
    assert [one["answer"] for one in (second, third)] == [known, known]
    assert language["scores"] == {
        "expected": 2,
        "right": 1,
        "strict": 0,
        "dense_right": 0,
        "dense_strict": 0,
        "compared": 0,
        "same_as_dense": 0,
    }
    told = capsys.readouterr()
    assert told.out.count(": right]\n") == told.out.count("[expected something else: wrong]\n") == 1
    assert "answers right: 1 of 2, to the letter 0\n" in told.err


def test_dense_answers_stand_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(
        tmp_path / "questions.json",
        {"at_s": 1.0, "question": QUESTION, "expected": "something else"},
        {"at_s": 1.5, "question": QUESTION},
    )
    out = tmp_path / "run.json"
    flags = ("--questions", file, "--compare-dense", "--json", str(out))
    assert run(*QUICK, "--preset", "off", *flags) == 0
    language = language_of(out)
    for one in language["questions"]:
        assert one["dense_answer"] == one["answer"] != ""
    assert (language["scores"]["compared"], language["scores"]["same_as_dense"]) == (2, 2)
    assert language["scores"]["dense_right"] == language["scores"]["right"] == 0
    assert language["dense"]["frames_prefilled"] == language["frames_prefilled"] == 4
    assert language["dense"]["memory"]["tokens"] == language["memory"]["tokens"]
    told = capsys.readouterr()
    assert "[expected something else: wrong; dense " in told.out
    assert "answers right: 0 of 1; dense: 0 of 1\n" in told.err
    assert "the same as dense: 2 of 2\n" in told.err


def test_a_dense_window_holds_as_many_frames(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    flags = ("--frames", "9", "--preset", "paper", "--ask", QUESTION, "--max-new-tokens", "1")
    assert run(*flags, "--window", "5", "--compare-dense", "--json", str(out)) == 0
    language, before = language_of(out), len(language_case().prompt().before)
    assert language["memory"]["tokens"] == before + 5  # a token of each frame
    assert language["dense"]["memory"]["tokens"] == before + 5 * POOLED


def test_frames_the_dense_stream_cannot_remember_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    flags = ("--memory", "all", "--ask", QUESTION, "--max-new-tokens", "1", "--compare-dense")
    assert run("--frames", "90", "--preset", "paper", *flags, "--json", str(out)) == 2
    language = language_of(out)
    assert language["frames_left_out"] == 0 < language["dense"]["frames_left_out"]
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: dense: --memory all: ")


def test_what_is_expected_at_a_moment_that_never_comes_is_not_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path / "questions.json",
        {"at_s": 50, "question": QUESTION, "expected": "yes"},
        {"at_s": 1, "question": QUESTION, "expected": "yes"},
        {"at_s": 60, "question": QUESTION},
    )
    out = tmp_path / "run.json"
    assert run(*QUICK, "--questions", file, "--json", str(out)) == 2
    language = language_of(out)
    assert [one["frames"] for one in language["questions"]] == [3, 4]
    assert (language["questions_unasked"], language["scores"]["expected"]) == (1, 1)
    assert [one["at_s"] for one in language["questions"]] == [1, 60]
    assert [one["beyond_end"] for one in language["questions"]] == [False, True]
    told = capsys.readouterr()
    assert told.out.count(f"] {QUESTION}\n> ") == 2  # the other is asked at the end, and told
    assert (
        "the stream ended at 1.6 s; asked now, though meant for later: 1 question, "
        "the first for 60 s\n"
    ) in told.err
    assert "answers right: 0 of 1, 1 not asked\n" in told.err
    assert told.err.endswith(
        "error: --questions: the stream ended at 1.6 s, 1 of them come later; "
        "the first is at 50 s: correct it, or watch more frames\n"
    )


def test_a_question_of_a_flag_that_comes_later_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.json"
    late = ("--ask-at", f"70:{QUESTION}", "--ask-at", f"60.5:{QUESTION}")
    assert run(*QUICK, *late, "--ask", QUESTION, "--json", str(out)) == 0
    asked = language_of(out)["questions"]
    assert [(one["at_s"], one["beyond_end"]) for one in asked] == [
        *((60.5, True), (70, True), (None, False))
    ]
    told = capsys.readouterr().err
    assert told.count("asked now, though meant for later: 2 questions, the first for 60.5 s\n") == 1
    assert run(*QUICK, "--ask-at", f"1:{QUESTION}") == 0
    assert "meant for later" not in capsys.readouterr().err


def test_what_a_failing_device_leaves_unasked_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push = StreamSession.push

    def failing(session: StreamSession, frame: Frame) -> FrameReport:
        if frame.index == 3:
            raise DeviceError("device", "was lost")
        return push(session, frame)

    monkeypatch.setattr(StreamSession, "push", failing)
    file = written(
        tmp_path / "questions.json",
        *({"at_s": at_s, "question": QUESTION, "expected": "no"} for at_s in (0.5, 1.5, 2)),
    )
    out = tmp_path / "run.json"
    assert run(*QUICK, "--questions", file, "--ask", QUESTION, "--json", str(out)) == 2
    assert language_of(out)["questions_unasked"] == 3
    told = capsys.readouterr().err
    assert "answers right: 0 of 1, 3 not asked\n" in told
    assert told.endswith("error: device: was lost\n")
    assert run(*QUICK, "--ask", QUESTION) == 2
    told = capsys.readouterr().err
    assert "questions not asked: 1\n" in told and "answers right" not in told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no json", "no JSON (Expecting value"),
        ("[NaN]", "no JSON (NaN is no number)"),
        ("{}", "got {}, expected a list of entries, not empty"),
        ("[]", "got [], expected a list of entries, not empty"),
        ("[1]", "[0]: got 1, expected an object with fields"),
        ('[{"at_s": 1}]', "[0].question: no such field, expected text"),
        ('[{"question": "a"}]', "[0].at_s: no such field, expected seconds, at least 0"),
        ('[{"at_s": "1", "question": "a"}]', "[0].at_s: got '1', expected seconds"),
        ('[{"at_s": -1, "question": "a"}]', "[0].at_s: got -1, expected seconds"),
        ('[{"at_s": true, "question": "a"}]', "[0].at_s: got True"),
        ('[{"at_s": 1, "question": " "}]', "[0].question: got ' ', expected text"),
        ('[{"at_s": 1, "question": "a", "expected": 3}]', "[0].expected: got 3, expected text"),
        ('[{"at_s": 1, "question": "a", "answer": "b"}]', "[0]: unknown field 'answer', expected"),
        ('[{"at_s": 1, "question": "a <video>"}]', "question: contains <video>"),
        (None, "questions.json: cannot be read (No such file or directory); check the path"),
        ('[{"at": 1, "question": "a"}]', "or expected; call it at_s"),
        ('[{"at_s": 1, "at": 1, "question": "a"}]', "leave it out, or correct its name"),
        ('[{"at_s": 1, "questoin": "a"}]', "unknown field 'questoin'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.json"
    if content is not None:
        path.write_text(content)
    assert run("--frames", "1", "--questions", str(path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert told in error
    assert "download" not in error
    if content is None:
        assert error.startswith("error: --questions ")


def test_no_output_replaces_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "q.json", {"at_s": 0, "question": QUESTION})
    before = Path(file).read_text()
    assert run("--frames", "1", "--questions", file, "--json", file) == 2
    assert "is --questions as well" in capsys.readouterr().err
    assert Path(file).read_text() == before


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    asked = [Question("What is it?", 0.5, "ein Fuß"), Question("Who?", 2.0)]
    path = tmp_path / "questions.json"
    write_questions(path, asked)
    assert read_questions(path) == asked


def talk(asked: Sequence[Question], dense: Ask | None = None) -> tuple[Conversation, list[str]]:
    """A conversation at 5 s of a stream that nothing was remembered of, and what it says."""
    said: list[str] = []
    language = stream(language_case())
    questions = Questions(asked=tuple(asked), most=2)
    conversation = Conversation(language, questions, io.StringIO(), said.append, dense=dense)
    conversation.frame(Mock(time_s=5.0, prefill=None))
    return conversation, said


def test_a_question_that_waited_when_the_stream_ended_is_asked() -> None:
    conversation, said = talk([Question(QUESTION, 1.0, "yes"), Question(QUESTION, 6.0, "yes")])
    conversation.ask_rest()
    assert (conversation.unasked, said) == (1, [])
    assert "the first is at 6 s" in str(conversation.missed)
    assert [one["time_s"] for one in conversation.to_json()["questions"]] == [5.0]


def test_dense_frames_that_cannot_answer_leave_the_others_answer_alone() -> None:
    def full(*_: object) -> str:
        raise LanguageError("memory", "is full")

    conversation, said = talk([Question(QUESTION, 1.0, "yes")], full)
    conversation.ask_rest()
    [asked] = conversation.to_json()["questions"]
    assert asked["answer"] and asked["dense_error"] == "memory: is full" == said[0][7:]
    assert conversation.failed == 0 and "dense_answer" not in asked


def test_a_language_side_beside_another_remembers_by_itself() -> None:
    case = language_case()
    one = stream(case)
    other = one.beside(EVERYTHING, POOLED)
    assert other.model is one.model
    other.ask(QUESTION, 1).cancel()
    assert (one.facts().tokens, other.facts().tokens) == (0, len(case.prompt().before))


def test_runs_are_joined_into_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        tmp_path / "q.json", {"at_s": 0.5, "question": QUESTION, "expected": "something else"}
    )
    outs = [str(tmp_path / name) for name in ("one.json", "two.json")]
    for out, preset in zip(outs, ("off", "paper"), strict=True):
        flags = ("--questions", file, "--compare-dense", "--preset", preset, "--json", out)
        assert run(*QUICK, *flags) == 0
    capsys.readouterr()
    joined = tmp_path / "joined.json"
    assert runs_command.main([*outs, "--json", str(joined)]) == 0
    document = json.loads(joined.read_text())
    one, two = (json.loads(Path(out).read_text()) for out in outs)
    assert {name: document[name] for name in two} == two
    assert document["other_runs"] == [one]
    assert len(document["questions"]) == 2
    for asked, run_of_it in zip(document["questions"], (one, two), strict=True):
        assert asked["clip"] == run_of_it["video"]
        assert asked["settings"] == run_of_it["settings"]
        assert (asked["question"], asked["expected"]) == (QUESTION, "something else")
        assert asked["right"] is False and asked["answer"] and round(asked["time_s"], 3) == 0.6
    printed = capsys.readouterr().out
    assert printed.count("0 of 1") == 4
    assert "100%" in printed and "not asked" not in printed
    two["language"]["questions_unasked"] = 3
    joined.write_text(json.dumps(two))
    assert runs_command.main([str(joined)]) == 0
    assert capsys.readouterr().out.count("0 of 1, 3 not asked") == 2


@pytest.mark.parametrize("content", ["nothing", "[]", "{}", '{"against_dense": null}', "3"])
def test_what_is_no_run_cannot_be_joined(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "run.json", tmp_path / "out.json"
    path.write_text(content)
    assert runs_command.main([str(path), "--json", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: no ") and error.count("\n") == 1
    assert not out.exists()


def test_a_wrong_entry_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('[{"at_s": 0, "question": "a"}, 3]')
    with pytest.raises(SettingsError, match=r"q\.json\[1\]: got 3"):
        read_questions(path)
