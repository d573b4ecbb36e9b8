"""StreamingBench: questions asked while a video runs; some build on earlier ones, some wait.

Official files: `questions_real.json`, `questions_sqa.json` and `questions_proactive.json` with
`videos/sample_N_PART.mp4`, or `Real_Time_Visual_Understanding.csv` and the like with
`sample_N/video.mp4`. What needs sound is left out.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.entries import (
    NAME_IT,
    Entry,
    csv_entries,
    find_all,
    first_of,
    json_entries,
    read_json,
    roots_of,
)
from stc.runtime.evaluate.benchmarks.item import (
    LETTERS,
    Benchmark,
    Item,
    Loaded,
    Polls,
    Scored,
)
from stc.runtime.evaluate.benchmarks.rules import proactive_answer
from stc.runtime.evaluate.benchmarks.scores import mean_of_questions
from stc.shell.ranges import one_of, shown

POLLED_S = 4
"""Seconds after the right one during which a proactive question is still repeated."""
SQA = "Sequential Question Answering"
PROACTIVE = "Proactive Output"
NEEDS_SOUND = "needs sound, which the model does not hear"

CHOOSE = """Look at the video and answer the multiple-choice question about it.
Reply with the letter of the right option and nothing else.
{context}
Question: {about}

Options:
{options}

The best option is:"""
EARLIER = """
Earlier questions about this video, with their answers:
{told}
The new question, which may refer to them:
"""
ONE_EARLIER = "At {time}: {about} Options: {options} Answer: {answer}"
READY = """{about} Is it the right time to output "{output}"? Reply with yes or no."""
WAITING = """Look at the pictures and answer the question about them.
Make sure that they show what the question waits for before you say so.

Question: {about}

The answer is:"""


@dataclass(frozen=True)
class Part:
    """A part of the benchmark: its name, its files, and the folders its videos lie in."""

    name: str
    files: tuple[str, ...]
    folders: tuple[str, ...] = ()


PARTS = (
    Part(
        "real",
        ("questions_real.json", "questions_real_stream.json", "Real_Time_Visual_Understanding.csv"),
        ("Real-Time Visual Understanding", "Real-Time_Visual_Understanding"),
    ),
    Part(
        "sqa",
        ("questions_sqa.json", "questions_sqa_stream.json", "Sequential_Question_Answering.csv"),
        ("Sequential Question Answering", "Sequential_Question_Answering"),
    ),
    Part(
        "proactive",
        ("questions_proactive.json", "questions_proactive_50.json", "Proactive_Output*.csv"),
        ("Proactive Output", "Proactive_Output"),
    ),
    Part(
        "omni",
        (
            "questions_omni.json",
            "questions_omni_stream.json",
            "Omni_Source_Understanding.csv",
            "Contextual_Understanding.csv",
        ),
    ),
)


def load(folder: Path) -> Loaded:
    """The questions of all parts in `folder`, or of that file.

    Raises SettingsError for a file that is missing, not in the official form, or there twice.
    """
    items: list[Item] = []
    skipped: dict[str, int] = {}
    for part in PARTS:
        found = find_all(folder, part.files)
        if folder.is_file():
            found = [folder] if any(folder.match(name) for name in part.files) else []
        if part.name == "omni":
            for path in found:
                reason = f"{path.name} {NEEDS_SOUND}"
                skipped[reason] = sum(len(told) for told in _threads(path, part))
            continue
        if len(found) > 1:
            got = f"holds part {part.name} twice ({', '.join(map(str, found))})"
            raise SettingsError(folder, got, "once", NAME_IT)
        for path in found:
            roots = roots_of(folder, path)
            for thread in _threads(path, part):
                items += _thread(thread, part, roots)
    if not items and not skipped:
        names = ", ".join(name for part in PARTS for name in part.files[::2])
        got = "is none of its files" if folder.is_file() else "holds none of its files"
        raise SettingsError(folder, got, f"one of {names}")
    return Loaded(tuple(items), skipped)


def row(entry: Entry, number: str) -> Scored:
    """The question of a line of answers: `task_type` (or `task`), and `answer`, a letter or, for a
    proactive question, `SECOND: TEXT`."""
    task = entry.text(entry.named("task_type", "task"))
    if task == PROACTIVE:
        answer = entry.text("answer")
        if not re.match(r"\d+: ", answer, re.ASCII):
            raise SettingsError(entry.where("answer"), f"got {shown(answer)}", "SECOND: TEXT")
        return Scored(id=number, task=task, rule="proactive", right=answer, category="proactive")
    right = one_of(entry.where("answer"), entry.text("answer"), tuple(LETTERS))
    category = "sqa" if task == SQA else "real"
    return Scored(id=number, task=task, rule="letter", right=right, category=category)


@dataclass(frozen=True)
class _Question:
    """A question of a file, and the video it is about as the file has it."""

    entry: Entry
    video: str
    name: str

    @property
    def options(self) -> list[str]:
        """With their letters in front."""
        entry = self.entry
        options = entry.values.get("options")
        if isinstance(options, str):  # of a CSV
            entry = Entry({"options": _literal(options)}, entry.place)
        texts = entry.texts("options", len(LETTERS))
        if texts[0].startswith("A."):
            return texts
        return [f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False)]

    @property
    def answer(self) -> str:
        """The letter of the right option."""
        letters = tuple(LETTERS[: len(self.options)])
        return one_of(self.entry.where("answer"), self.entry.text("answer"), letters)


def _threads(path: Path, part: Part) -> list[list[_Question]]:
    """The questions of a file, together where later ones build on earlier ones."""
    if path.suffix == ".csv":
        by_video: dict[str, list[_Question]] = defaultdict(list)
        for entry in csv_entries(path):
            name = entry.text("question_id")
            found = re.search(r"_(?:sample_)?(\d+)_\d+$", name, re.ASCII)
            if found is None:
                got = f"got {shown(name)}"
                raise SettingsError(entry.where("question_id"), got, "PART_sample_NUMBER_NUMBER")
            by_video[found[1]].append(_Question(entry, f"sample_{found[1]}", name))
        return list(by_video.values())
    if part.name != "sqa":
        return [_asked(entry, part) for entry in json_entries(path)]
    threads = []
    for index, listed in enumerate(read_json(path)):
        whole = Entry({"entries": listed}, f"{path}[{index}]")
        threads.append([one for entry in whole.entries("entries") for one in _asked(entry, part)])
    return threads


def _asked(entry: Entry, part: Part) -> list[_Question]:
    video = entry.text("video_path")
    number = re.sub(r"^.*?\[", "[", entry.place)
    return [
        _Question(one, video, f"{part.name}{number}.{index}")
        for index, one in enumerate(entry.entries("questions"))
    ]


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text  # refused as no list


def _thread(thread: list[_Question], part: Part, roots: Sequence[Path]) -> list[Item]:
    if part.name == "proactive":
        return [_proactive(one, part, roots) for one in thread]
    items = []
    told: list[str] = []
    for one in thread:
        context = EARLIER.format(told="\n".join(told)) if told else ""
        items.append(_chosen(one, part, roots, context))
        if part.name == "sqa":
            about, time = one.entry.text("question"), one.entry.text("time_stamp")
            options = " ".join(one.options)
            told.append(
                ONE_EARLIER.format(time=time, about=about, options=options, answer=one.answer)
            )
    return items


def _chosen(one: _Question, part: Part, roots: Sequence[Path], context: str) -> Item:
    about = one.entry.text("question")
    options = "\n".join(one.options)
    return Item(
        id=one.name,
        task=one.entry.text("task_type"),
        category=part.name,
        rule="letter",
        right=one.answer,
        video=_video(one, part, roots),
        until_s=one.entry.clock("time_stamp"),
        question=CHOOSE.format(context=context, about=about, options=options),
        about=about,
    )


def _proactive(one: _Question, part: Part, roots: Sequence[Path]) -> Item:
    about, output = one.entry.text("question"), one.entry.text("ground_truth_output")
    asked_s = one.entry.clock("time_stamp")
    right_s = one.entry.clock("ground_truth_time_stamp")
    last = max(asked_s + 1, right_s + POLLED_S)
    return Item(
        id=one.name,
        task=one.entry.text("task_type"),
        category=part.name,
        rule="proactive",
        right=proactive_answer(right_s, output),
        video=_video(one, part, roots),
        from_s=asked_s,
        until_s=last,
        question=WAITING.format(about=READY.format(about=about, output=output)),
        about=about,
        polls=Polls(asked_s + 1, last, WAITING.format(about=about)),
    )


def _video(one: _Question, part: Part, roots: Sequence[Path]) -> Path:
    """The file, wherever the official archives or scripts put it."""
    if one.video.endswith(".mp4"):
        name = Path(one.video).name
        sample = name.rpartition("_")[0]
    else:
        name, sample = f"{one.video}_{part.name}.mp4", one.video
    unpacked = [
        f"{folder}/{sample}/video.mp4" for folder in (part.name, f"data/{part.name}", *part.folders)
    ]
    names = [f"videos/{name}", *unpacked, f"{sample}/video.mp4", name]
    if one.video.endswith(".mp4") and not Path(one.video).is_absolute():
        names.insert(0, one.video)
    return first_of(roots, names)


LINE = {"task_type": "Counting", "answer": "A"}
STREAMINGBENCH = Benchmark("streamingbench", load, row, LINE, mean_of_questions, mean_of_questions)
