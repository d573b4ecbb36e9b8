"""What methods scored: per task, per category and in all, of how many questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from stc.runtime.evaluate.benchmarks.item import Benchmark, Marks, Mean, Scored
from stc.runtime.evaluate.benchmarks.rules import lenient, strict

Answers = Mapping[str, str | None]
"""What a method answered, by the question's id; None is no answer, and wrong. A question that is
not there was not run."""


def mean_of_questions(marks: Marks) -> float:
    """The share of `marks` that is right."""
    return fmean(right for _, right in marks)


def mean_of_tasks(marks: Marks) -> float:
    """The mean of the tasks' shares."""
    return fmean(mean_of_questions(one) for one in _grouped(marks, "task").values())


def mean_of_categories(marks: Marks) -> float:
    """The mean of the categories, each the mean of its tasks' shares."""
    return fmean(mean_of_tasks(one) for one in _grouped(marks, "category").values())


def score(
    benchmark: Benchmark, questions: Sequence[Scored], answers: Mapping[str, Answers]
) -> dict[str, Any]:
    """What each method of `answers` scored, as finite numbers; a share of nothing is None.

    accuracy: by the benchmark's own code. lenient: as a person would read. Both over the questions
        `answered`, of those `asked`.
    common: accuracy over the `questions` that every method answered.
    """
    known = [one for one in questions if one.right]
    common = [one for one in known if all(one.id in given for given in answers.values())]
    return {
        name: _method(benchmark, known, common, given, len(questions))
        for name, given in answers.items()
    }


def lines(benchmark: Benchmark, methods: Mapping[str, Any]) -> list[str]:
    """What a terminal is told of the document of `score`: a line for every method and category."""
    told = []
    for name, one in methods.items():
        shares = [
            f"{_percent(one['accuracy'])} strict",
            f"{_percent(one['lenient'])} lenient",
            *(f"{_percent(one[also])} {also}" for also in benchmark.also),
        ]
        told.append(
            f"{name}: {', '.join(shares)}, {one['answered']:,} of {one['asked']:,} answered"
        )
        if len(methods) > 1:
            number = one["questions"]
            told.append(f"  {_percent(one['common'])} of the {number:,} that all answered")
        for kind in ("categories", "tasks"):
            if len(one[kind]) > 1:
                told += [f"  {part}: {_part(shown)}" for part, shown in one[kind].items()]
    return told


def _method(
    benchmark: Benchmark,
    questions: Sequence[Scored],
    common: Sequence[Scored],
    given: Answers,
    asked: int,
) -> dict[str, Any]:
    return {
        **_figures(benchmark.mean, questions, given),
        "answered": len(given),
        "asked": asked,
        "common": _share(benchmark.mean, common, given, strict),
        "questions": len(common),
        **{name: _share(mean, questions, given, strict) for name, mean in benchmark.also.items()},
        "categories": _parts("category", benchmark.category_mean, questions, given),
        "tasks": _parts("task", mean_of_questions, questions, given),
    }


def _parts(kind: str, mean: Mean, questions: Sequence[Scored], given: Answers) -> dict[str, Any]:
    parts = {}
    for name, marks in _grouped([(one, True) for one in questions], kind).items():
        some = [one for one, _ in marks]
        answered = sum(one.id in given for one in some)
        parts[name] = _figures(mean, some, given) | {"answered": answered, "asked": len(some)}
    return parts


def _figures(mean: Mean, questions: Sequence[Scored], given: Answers) -> dict[str, Any]:
    return {
        "accuracy": _share(mean, questions, given, strict),
        "lenient": _share(mean, questions, given, lenient),
    }


def _share(
    mean: Mean,
    questions: Iterable[Scored],
    given: Answers,
    right: Callable[[Scored, str | None], bool],
) -> float | None:
    marks = [(one, right(one, given[one.id])) for one in questions if one.id in given]
    return mean(marks) if marks else None


def _grouped(marks: Marks, kind: str) -> dict[str, list[tuple[Scored, bool]]]:
    groups: dict[str, list[tuple[Scored, bool]]] = {}
    for one, right in marks:
        groups.setdefault(getattr(one, kind), []).append((one, right))
    return groups


def _part(shown: Mapping[str, Any]) -> str:
    of = f"{shown['answered']:,} of {shown['asked']:,}"
    return f"{_percent(shown['accuracy'])} strict, {_percent(shown['lenient'])} lenient, {of}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
