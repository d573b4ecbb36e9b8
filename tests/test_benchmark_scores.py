"""Which answers are right, and what methods score in the official way of each benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.catalogue import BENCHMARKS, read_answers
from stc.runtime.evaluate.benchmarks.item import Rule, Scored
from stc.runtime.evaluate.benchmarks.rules import lenient, letter_of, option_of, strict
from stc.runtime.evaluate.benchmarks.scores import lines, score


def asked(name: str, rule: Rule, right: str, task: str = "t", category: str = "c") -> Scored:
    return Scored(id=name, task=task, rule=rule, right=right, category=category)


CASES: list[tuple[Rule, str, str | None, bool, bool]] = [
    ("letter", "B", "B", True, True),
    ("letter", "B", " B\n", True, True),
    ("letter", "B", "B.", False, True),
    ("letter", "B", "(B) A blue cup.", False, True),
    ("letter", "B", "b", False, True),
    ("letter", "B", "The best option is B", False, True),
    ("letter", "B", "A.", False, False),
    ("letter", "B", "B or C", False, False),
    ("letter", "A", "A man walks", False, False),
    ("letter", "A", "", False, False),
    ("letter", "A", None, False, False),
    ("letter occurs", "C", "C", True, True),
    ("letter occurs", "C", "C.", True, True),
    ("letter occurs", "C", "B. A Cat", True, False),
    ("letter occurs", "C", "It is A.\nC", True, True),
    ("letter occurs", "C", "C?\nNo, B.", True, False),
    ("letter occurs", "C", None, False, False),
    ("count", "12", "12", True, True),
    ("count", "12", "12 times", True, True),
    ("count", "12", "12 times in 3 s", False, True),
    ("count", "12", "1 and 2", True, False),
    ("count", "0", "0", True, True),
    ("count", "0", "none", False, False),
    ("count", "0", None, False, False),
    ("yes or no", "Yes", "Yes", True, True),
    ("yes or no", "Yes", "Y", True, True),
    ("yes or no", "Yes", "yes.", False, True),
    ("yes or no", "Yes", "No", False, False),
    ("yes or no", "No", "N", True, True),
    ("yes or no", "No", "Not sure", True, False),
    ("yes or no", "No", "Yes", False, False),
    ("yes or no", "No", "", False, False),
    ("yes or no", "No", None, False, False),
    ("option", "B", "B) Blue", True, True),
    ("option", "B", "B", True, True),
    ("option", "B", "Best option: (B)", True, True),
    ("option", "B", "Blue", True, True),
    ("option", "B", "The answer is B", False, True),
    ("option", "B", ")", False, False),
    ("option", "B", "", False, False),
    ("proactive", "9: 3", "9: 3", True, True),
    ("proactive", "9: 3", "11: It shows 3.", True, True),
    ("proactive", "9: 3", "7: 3", True, True),
    ("proactive", "9: 3", "12: 3", False, False),
    ("proactive", "9: 3", "9: 4", False, False),
    ("proactive", "9: Goal", "9: a goal", False, True),
    ("proactive", "9: 3", "3", False, False),
    ("proactive", "9: 3", None, False, False),
]


@pytest.mark.parametrize(("rule", "right", "answer", "strictly", "leniently"), CASES)
def test_what_is_right(
    rule: Rule, right: str, answer: str | None, strictly: bool, leniently: bool
) -> None:
    question = asked("1", rule, right)
    assert (strict(question, answer), lenient(question, answer)) == (strictly, leniently)


def test_letters_are_read_as_people_write_them() -> None:
    assert [letter_of(text) for text in ("C:", "(d)", "answer: E", "I say C", "Cup", "\n ")] == [
        *("C", "D", "E", "C", None, None)
    ]
    texts = (" A) x", "x) y (B)", ") A", "C", " ")
    assert [option_of(text) for text in texts] == ["A", "x", "", "C", ""]


def test_ovo_bench_is_a_mean_of_means() -> None:
    """One task of two right answers weighs as much as one of a single wrong one."""
    rows = [
        ("EPM", "backward", "A"),
        ("EPM", "backward", "A"),
        ("ASI", "backward", "B"),
        ("OCR", "real-time", "A"),
        ("REC", "forward", "7"),
    ]
    questions = [
        asked(str(i), "count" if task == "REC" else "letter occurs", right, task, category)
        for i, (task, category, right) in enumerate(rows)
    ]
    given = {"0": "A", "1": "A", "2": "A", "3": "A", "4": "8"}
    [told] = score(BENCHMARKS["ovo-bench"], questions, {"stc": given}).values()
    shares = {name: one["accuracy"] for name, one in told["categories"].items()}
    assert shares == {"backward": 0.5, "real-time": 1.0, "forward": 0.0}
    assert told["accuracy"] == pytest.approx(0.5)
    assert told["tasks"]["EPM"] == {"accuracy": 1.0, "lenient": 1.0, "answered": 2, "asked": 2}


def test_mlvu_is_a_mean_of_questions_and_of_tasks() -> None:
    questions = [asked(str(i), "option", "A", "plotQA") for i in range(3)]
    questions.append(asked("3", "option", "A", "order"))
    given = {"0": "A", "1": "A", "2": "A", "3": "B"}
    methods = score(BENCHMARKS["mlvu"], questions, {"stc": given})
    assert (methods["stc"]["accuracy"], methods["stc"]["m_avg"]) == (0.75, 0.5)
    assert "50.00 m_avg" in lines(BENCHMARKS["mlvu"], methods)[0]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_methods_are_compared_over_what_all_answered(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"task_type": "Counting", "answer": "A", "one": " A", "two": "A."},
        {"task_type": "Counting", "answer": "B", "one": "B"},
        {"task_type": "Counting", "answer": "C", "one": "", "two": "C"},
        {"task_type": "Counting", "answer": "D", "two": None},
    ]
    benchmark = BENCHMARKS["streamingbench"]
    questions, answers = read_answers(benchmark, write(tmp_path / "a.jsonl", rows))
    methods = score(benchmark, questions, answers)
    one, two = methods["one"], methods["two"]
    assert (one["answered"], one["asked"], one["questions"]) == (3, 4, 2)
    assert (one["accuracy"], one["lenient"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (two["accuracy"], two["lenient"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (one["common"], two["common"]) == (0.5, 0.5)
    told = lines(benchmark, methods)
    assert told[0] == "one: 66.67 strict, 66.67 lenient, 3 of 4 answered"
    assert told[1] == "  50.00 of the 2 that all answered"


def test_answers_without_a_published_truth_have_no_share() -> None:
    questions = [asked("1", "option", "")]
    [told] = score(BENCHMARKS["egoschema"], questions, {"stc": {"1": "A"}}).values()
    assert (told["accuracy"], told["lenient"], told["common"]) == (None, None, None)
    assert (told["answered"], told["asked"]) == (1, 1)


WAITS: tuple[Rule, str] = ("proactive", "9: 3")


@pytest.mark.parametrize(
    ("name", "row", "rule", "right"),
    [
        ("ovo-bench", {"task": "REC", "answer": 3}, "count", "3"),
        ("ovo-bench", {"task": "SSR", "answer": "Yes"}, "yes or no", "Yes"),
        ("ovo-bench", {"task": "OCR", "answer": "B"}, "letter occurs", "B"),
        ("streamingbench", {"task_type": "Proactive Output", "answer": "9: 3"}, *WAITS),
        ("egoschema", {"answer": 2}, "option", "C"),
        ("mlvu", {"answer": "C", "task": "ego"}, "option", "C"),
        ("video-mme", {"answer": "C", "duration": "long"}, "option", "C"),
    ],
)
def test_every_benchmarks_answers_are_read(
    name: str, row: dict[str, Any], rule: Rule, right: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [row | {"stc": "x"}])
    [question], answers = read_answers(BENCHMARKS[name], path)
    assert (question.rule, question.right) == (rule, right)
    assert answers == {"stc": {"1": "x"}}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"task_type": "Counting", "stc": "A"}', "line 1.answer: no such field, expected text"),
        ('{"task_type": "Counting", "answer": "Z", "stc": "A"}', "answer: got 'Z', expected A, B"),
        ('{"answer": "A", "stc": "A"}', "line 1.task_type: no such field"),
        ('{"task_type": "x", "answer": "A", "stc": 1}', "line 1.stc: got 1, expected the text"),
        ('{"task_type": "x", "answer": "A"}', "holds no answers"),
        ('{"task_type": "Proactive Output", "answer": "3", "stc": ""}', "expected SECOND: TEXT"),
        ("[1]", r"line 1: got \[1\], expected an object"),
        ("{", "line 1: no JSON"),
        ("", "holds no answers"),
    ],
)
def test_damaged_answers_are_named(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(SettingsError, match=told):
        read_answers(BENCHMARKS["streamingbench"], path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_line_that_an_error_suggests_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content in ("", '{"answer": "A"', "\xff"):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(SettingsError) as caught:
            read_answers(BENCHMARKS[name], path)
        assert "download" not in str(caught.value)
        suggested = "{" + str(caught.value).rpartition("such as {")[2]
        path.write_text(suggested)
        [question], answers = read_answers(BENCHMARKS[name], path)
        assert (question.right, answers) == ("A", {"stc": {"1": "B"}})


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    """JSON takes the other characters that end a line inside a text."""
    path = tmp_path / "a.jsonl"
    given = "one\u2028two\x85three\u2029four"
    row = json.dumps({"answer": "A", "stc": given}, ensure_ascii=False)
    path.write_bytes(f"{row}\r\n{row}\n".encode())
    _, answers = read_answers(BENCHMARKS["mlvu"], path)
    assert answers == {"stc": {"1": given, "2": given}}


def test_a_question_is_answered_once(tmp_path: Path) -> None:
    row: dict[str, Any] = {"id": 4, "task_type": "x", "answer": "A", "stc": "A"}
    path = write(tmp_path / "a.jsonl", [row, row])
    with pytest.raises(SettingsError, match=r"line 2.id: '4' is in the file twice"):
        read_answers(BENCHMARKS["streamingbench"], path)
