"""The benchmarks by their names: their questions, and files of answers to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.entries import is_there, json_lines
from stc.runtime.evaluate.benchmarks.item import Benchmark, Item, Loaded, Scored
from stc.runtime.evaluate.benchmarks.offline import EGOSCHEMA, MLVU, VIDEO_MME
from stc.runtime.evaluate.benchmarks.ovo_bench import OVO_BENCH
from stc.runtime.evaluate.benchmarks.scores import Answers
from stc.runtime.evaluate.benchmarks.streamingbench import STREAMINGBENCH
from stc.shell.ranges import one_of, shown

BENCHMARKS = {one.name: one for one in (OVO_BENCH, STREAMINGBENCH, EGOSCHEMA, MLVU, VIDEO_MME)}

NO_METHODS = frozenset(
    "id question_id task task_type category duration answer question options choices time_stamp "
    "video video_id video_path".split()
)
"""Fields of a line that say something of the question."""


def benchmark_of(flag: str, name: object) -> Benchmark:
    """The benchmark that is called `name`. Raises SettingsError about `flag` unless there is."""
    return BENCHMARKS[one_of(flag, name, tuple(BENCHMARKS))]


def load(benchmark: Benchmark, folder: Path) -> Loaded:
    """The questions of `benchmark` in `folder`, each of a name of its own.

    Raises SettingsError for files that are missing or damaged.
    """
    loaded = benchmark.load(folder)
    seen: set[str] = set()
    for item in loaded.items:
        if item.id in seen:
            raise SettingsError(folder, f"holds the question {item.id} twice", "once")
        seen.add(item.id)
    return loaded


def missing(items: Iterable[Item]) -> list[Path]:
    """The videos of `items` that are not there, in order."""
    return sorted({item.video for item in items if not is_there(item.video)})


def read_answers(
    benchmark: Benchmark, path: Path
) -> tuple[Sequence[Scored], dict[str, dict[str, str | None]]]:
    """The questions of `path`, and what each method answered.

    A line is a JSON object: what the benchmark says of the question (`Benchmark.row`), and under
    the name of each method its answer. A method that a line does not name did not run that
    question; null is no answer, and wrong.
    Raises SettingsError naming file, line and field for what is not in the form.
    """
    questions: dict[str, Scored] = {}
    answers: dict[str, dict[str, str | None]] = {}
    example = json.dumps({**benchmark.line, "stc": "B"})
    fix = f"write a JSON object a line, such as {example}"
    for number, entry in json_lines(path, fix, "--answers"):
        name = str(entry.values.get("id", number))
        if name in questions:
            raise SettingsError(entry.where("id"), f"{shown(name)} is in the file twice", "once")
        questions[name] = benchmark.row(entry, name)
        for method, answer in entry.values.items():
            if method in NO_METHODS:
                continue
            if answer is not None and not isinstance(answer, str):
                got = f"got {shown(answer)}"
                raise SettingsError(entry.where(method), got, "the text that a method answered")
            answers.setdefault(method, {})[name] = answer
    if not answers:
        expected = "what a method answered, under its name"
        raise SettingsError(path, "holds no answers", expected, fix)
    return list(questions.values()), answers


def answer_lines(items: Iterable[Item], answers: Mapping[str, Answers]) -> str:
    """The file that `read_answers` reads: a line for each of `items`, answered or not."""
    told = []
    for item in items:
        right: object = int(item.right) if item.rule == "count" else item.right or None
        line = {"id": item.id, "task": item.task, "category": item.category, "answer": right}
        given = {name: some[item.id] for name, some in answers.items() if item.id in some}
        told.append(json.dumps(line | given) + "\n")
    return "".join(told)
