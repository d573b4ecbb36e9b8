"""OVO-Bench: questions about what was, what is, and what is still to come, asked at a time.

Official files: `ovo_bench_new.json`, and videos that end where the question is asked,
`chunked_videos/ID.mp4` (`ID_NUMBER.mp4` for questions of the third kind), or whole ones in
`src_videos/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stc.runtime.evaluate.benchmarks.entries import (
    Entry,
    find_one,
    first_of,
    is_there,
    json_entries,
    roots_of,
)
from stc.runtime.evaluate.benchmarks.item import LETTERS, Benchmark, Item, Loaded, Rule, Scored
from stc.runtime.evaluate.benchmarks.scores import mean_of_categories, mean_of_tasks
from stc.shell.ranges import one_of

CATEGORIES = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), "backward"),
    **dict.fromkeys(("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), "real-time"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "forward"),
}
"""Of the tasks."""
FILES = ("ovo_bench_new.json", "ovo_bench.json")
RULES: dict[str, Rule] = {"REC": "count", "SSR": "yes or no", "CRR": "yes or no"}
"""Of the tasks whose options have no letters."""
YES_NO = ("No", "Yes")
MOST = 100_000

CHOOSE = """Question: {about}
Options:
{options}

Reply with the letter of the right option (A, B, C, ...) and nothing else."""
COUNT = """In the video an action may be done again and again, by one or several people ("they").
Every complete movement counts as one.

Question: How many times did they {activity}?

Reply with one number (0, 1, 2, 3, ...) and nothing else."""
STEP = """The video teaches something that takes several steps. One of them is:
{about}

Is the person in the video doing this step right now? Reply with Yes or No and nothing else."""
ENOUGH = """This question is about the newest frames, the end of the video:
{about}

Does what was shown until now, the newest frames above all, tell enough to answer it?
Reply with Yes or No and nothing else."""


def load(folder: Path) -> Loaded:
    """The questions of the benchmark in `folder`, or of that file.

    Raises SettingsError for a file that is missing or not in the official form.
    """
    path = find_one(folder, FILES)
    roots = roots_of(folder, path)
    items: list[Item] = []
    for entry in json_entries(path):
        task = one_of(entry.where("task"), entry.value("task", "a task"), tuple(CATEGORIES))
        if CATEGORIES[task] == "forward":
            items += _forward(entry, task, roots)
        else:
            items.append(_chosen(entry, task, roots))
    return Loaded(tuple(items))


def row(entry: Entry, number: str) -> Scored:
    """The question of a line of answers: `task`, and `answer`, a letter, a count or Yes or No."""
    task = one_of(entry.where("task"), entry.value("task", "a task"), tuple(CATEGORIES))
    rule = RULES.get(task, "letter occurs")
    if rule == "count":
        right = str(entry.whole("answer", 0, MOST))
    else:
        options = YES_NO if rule == "yes or no" else tuple(LETTERS)
        right = one_of(entry.where("answer"), entry.text("answer"), options)
    return Scored(id=number, task=task, rule=rule, right=right, category=CATEGORIES[task])


def _chosen(entry: Entry, task: str, roots: Sequence[Path]) -> Item:
    options = entry.texts("options", len(LETTERS))
    right = LETTERS[entry.whole("gt", 0, len(options) - 1)]
    about = entry.text("question")
    marked = (f"{letter}. {text};" for letter, text in zip(LETTERS, options, strict=False))
    question = CHOOSE.format(about=about, options=" ".join(marked))
    name = str(entry.whole("id", 0, MOST))
    return _item(entry, entry, roots, name, task, "letter occurs", right, about, question)


def _forward(entry: Entry, task: str, roots: Sequence[Path]) -> list[Item]:
    name = str(entry.whole("id", 0, MOST))
    items = []
    for index, test in enumerate(entry.entries("test_info")):
        if task == "REC":
            about = f"How many times did they {entry.text('activity')}?"
            question = COUNT.format(activity=entry.text("activity"))
            right = str(test.whole("count", 0, MOST))
        else:
            about = test.text("step") if task == "SSR" else entry.text("question")
            question = (STEP if task == "SSR" else ENOUGH).format(about=about)
            right = YES_NO[test.whole("type", 0, 1)]
        one = f"{name}_{index}"
        items.append(_item(entry, test, roots, one, task, RULES[task], right, about, question))
    return items


def _item(
    entry: Entry,
    timed: Entry,
    roots: Sequence[Path],
    name: str,
    task: str,
    rule: Rule,
    right: str,
    about: str,
    question: str,
) -> Item:
    """The question called `name`, about the chunk that is called so, or a video cut where `timed`
    is."""
    until_s = timed.seconds("realtime")
    chunk = first_of(roots, [f"chunked_videos/{name}.mp4"])
    cut = is_there(chunk)
    video = entry.text("video")
    whole = first_of(roots, [f"src_videos/{video}", video])
    return Item(
        id=name,
        task=task,
        category=CATEGORIES[task],
        rule=rule,
        right=right,
        video=chunk if cut else whole,
        until_s=None if cut else until_s,
        question=question,
        about=about,
    )


LINE = {"task": "OCR", "answer": "A"}
OVO_BENCH = Benchmark("ovo-bench", load, row, LINE, mean_of_categories, mean_of_tasks)
