"""EgoSchema, MLVU and Video-MME: questions about whole videos, with options and one prompt.

The form is that of ReKV's code: `(A) ..` options, and an answer that begins with `Best option: (`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.entries import (
    AGAIN,
    Entry,
    find_all,
    find_one,
    first_of,
    json_entries,
    roots_of,
)
from stc.runtime.evaluate.benchmarks.item import LETTERS, Benchmark, Item, Loaded, Scored
from stc.runtime.evaluate.benchmarks.rules import letter_of, option_of
from stc.runtime.evaluate.benchmarks.scores import mean_of_questions, mean_of_tasks
from stc.shell.ranges import one_of, shown

PARQUET_EXTRA = "benchmarks"
BEGIN = "Best option: ("
CHOOSE = """Question: {about}
Options:
{options}
Reply with the best option only."""

MLVU_FILES = ("mlvu_dev.json", "dev_debug_mc.json", "[1-7]_*.json")
MLVU_FOLDERS = {
    "plotQA": "1_plotQA",
    "findNeedle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Of the tasks, with the folders of their videos."""
EGOSCHEMA_FILES = ("egoschema*.json", "subset.json", "full.json")
VIDEO_MME_FILES = ("*.parquet", "video*mme*.json")
FIVE = LETTERS[:5]
DURATIONS = ("short", "medium", "long")


def load_egoschema(folder: Path) -> Loaded:
    """The questions of EgoSchema's subset, or of all of it, whose answers are not published."""
    path = find_one(folder, EGOSCHEMA_FILES)
    roots = roots_of(folder, path)
    items = []
    for entry in json_entries(path):
        name = entry.text("video_id")
        for index, one in enumerate(entry.entries("conversations")):
            options = one.texts("choices", len(LETTERS))
            right = ""
            if one.values.get("answer") is not None:
                right = LETTERS[one.whole("answer", 0, len(options) - 1)]
            video = _video(roots, entry.text("video_path"), f"{name}.mp4")
            number = name if index == 0 else f"{name}.{index}"
            items.append(_item(number, "all", "all", right, video, one.text("question"), options))
    return Loaded(tuple(items))


def load_mlvu(folder: Path) -> Loaded:
    """The questions of MLVU's development set: one file of all, or a file for each task."""
    paths = find_all(folder, MLVU_FILES)
    per_task = [path for path in paths if re.match(r"[1-7]_", path.name)]
    paths = per_task or [find_one(folder, MLVU_FILES)]
    items = [
        one
        for path in paths
        for entry in json_entries(path)
        for one in _mlvu(entry, path, roots_of(folder, path))
    ]
    return Loaded(tuple(items))


def load_video_mme(folder: Path) -> Loaded:
    """The questions of Video-MME, from its parquet file or ReKV's JSON.

    Raises SettingsError where parquet cannot be read, and says how to install what reads it.
    """
    path = find_one(folder, VIDEO_MME_FILES)
    roots = roots_of(folder, path)
    if path.suffix == ".parquet":
        rows = [Entry(row, f"{path} row {number}") for number, row in enumerate(_parquet(path))]
        return Loaded(tuple(_video_mme_row(one, roots) for one in rows))
    items = []
    for place, entry in enumerate(json_entries(path)):
        for index, one in enumerate(entry.entries("conversations")):
            name = f"{entry.text('video_id')}-{place}.{index}"
            video = _video(roots, entry.text("video_path"))
            items.append(_video_mme(name, entry, one, "choices", video))
    return Loaded(tuple(items))


def row(entry: Entry, number: str) -> Scored:
    """The question of a line of answers: `answer`, a letter or the number of an option from 0, or
    null where none is published; where there are several, `task` (or `task_type`) and `category`
    (or `duration`)."""
    answer = entry.value("answer", "a letter, or a number from 0")
    if answer is None:
        right = ""
    elif isinstance(answer, str):
        right = one_of(entry.where("answer"), entry.text("answer"), tuple(LETTERS))
    else:
        right = LETTERS[entry.whole("answer", 0, len(LETTERS) - 1)]
    task, category = entry.named("task", "task_type"), entry.named("category", "duration")
    return Scored(
        id=number,
        rule="option",
        right=right,
        task=entry.text(task) if task in entry.values else "all",
        category=entry.text(category) if category in entry.values else "all",
    )


def submission(answers: Mapping[str, str | None]) -> str:
    """What EgoSchema's server scores: a CSV of videos and the numbers of options.

    An answer that names none of the five options is 0, as in ReKV's code.
    """
    told = ["q_uid,answer"]
    for name, answer in answers.items():
        letters = ("", "") if answer is None else (option_of(answer), letter_of(answer))
        number = next((FIVE.index(one) for one in letters if one and one in FIVE), 0)
        told.append(f"{name},{number}")
    return "\n".join(told) + "\n"


def _mlvu(entry: Entry, path: Path, roots: Sequence[Path]) -> list[Item]:
    """Of a video with its conversations, as ReKV has it, or of an official question."""
    if "conversations" in entry.values:
        asked, video = entry.entries("conversations"), entry.text("video_path")
        choices = "choices"
    else:
        asked, video, choices = [entry], entry.text("video"), "candidates"
    place = re.sub(r"^.*?\[", "[", entry.place)
    items = []
    for index, one in enumerate(asked):
        task = one_of(
            one.where("question_type"), one.value("question_type", "a task"), tuple(MLVU_FOLDERS)
        )
        options = one.texts(choices, len(LETTERS))
        answer = one.value("answer", "the text of an option")
        if answer not in options:
            got = f"got {shown(answer)}"
            raise SettingsError(one.where("answer"), got, f"one of {shown(options)}")
        names = (f"{MLVU_FOLDERS[task]}/{Path(video).name}", Path(video).name)
        found = _video(roots, video, *names)
        right = LETTERS[options.index(answer)]
        name = f"{path.stem}{place}.{index}"
        items.append(_item(name, task, "all", right, found, one.text("question"), options))
    return items


def _video_mme_row(one: Entry, roots: Sequence[Path]) -> Item:
    video = _video(roots, f"data/{one.text('videoID')}.mp4", f"{one.text('videoID')}.mp4")
    return _video_mme(one.text("question_id"), one, one, "options", video)


def _video_mme(name: str, entry: Entry, one: Entry, choices: str, video: Path) -> Item:
    duration = one_of(entry.where("duration"), entry.value("duration", "a duration"), DURATIONS)
    marked = one.texts(choices, len(LETTERS))
    options = [re.sub(r"^[A-H]\.\s*", "", text) for text in marked]
    letters = tuple(LETTERS[: len(options)])
    right = one_of(one.where("answer"), one.text("answer"), letters)
    task = one.text("task_type") if "task_type" in one.values else "all"
    return _item(name, task, duration, right, video, one.text("question"), options)


def _item(
    name: str, task: str, category: str, right: str, video: Path, about: str, options: list[str]
) -> Item:
    marked = (f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))
    return Item(
        id=name,
        task=task,
        category=category,
        rule="option",
        right=right,
        video=video,
        question=CHOOSE.format(about=about, options="\n".join(marked)),
        about=about,
        begin=BEGIN,
    )


def _video(roots: Sequence[Path], given: str, *names: str) -> Path:
    """The file at the path a file of questions has, or below folders that videos lie in."""
    tried = [*names, Path(given).name]
    paths = [f"{folder}{name}" for folder in ("videos/", "video/", "data/", "") for name in tried]
    return first_of(roots, [*([] if Path(given).is_absolute() else [given]), *paths])


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise SettingsError(
            path,
            "cannot be read without pyarrow",
            fix=f"pip install 'stc[{PARQUET_EXTRA}]', or take the questions as JSON",
        ) from error
    try:
        rows: list[dict[str, Any]] = read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise SettingsError(path, f"no parquet ({error})", fix=AGAIN) from error
    return rows


LINE = {"answer": "A"}
BY_QUESTIONS = (mean_of_questions, mean_of_questions)
EGOSCHEMA = Benchmark("egoschema", load_egoschema, row, LINE, *BY_QUESTIONS, submission=submission)
MLVU = Benchmark("mlvu", load_mlvu, row, LINE, *BY_QUESTIONS, {"m_avg": mean_of_tasks})
VIDEO_MME = Benchmark("video-mme", load_video_mme, row, LINE, *BY_QUESTIONS)
