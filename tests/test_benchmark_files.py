"""The public benchmarks' files as questions: every official form, and files that are damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.catalogue import BENCHMARKS, load, missing
from stc.runtime.evaluate.benchmarks.item import Item, Polls
from tests import benchmark_files as files
from tests.benchmark_files import write_csv, write_json


def loaded(name: str, folder: Path) -> dict[str, Item]:
    """The questions of a benchmark, by their ids."""
    return {item.id: item for item in load(BENCHMARKS[name], folder).items}


def make(path: Path) -> Path:
    """An empty file `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_ovo_bench_asks_for_letters_counts_and_yes_or_no(tmp_path: Path) -> None:
    write_json(tmp_path / "ovo_bench_new.json", files.OVO)
    items = loaded("ovo-bench", tmp_path)
    assert {name: (one.task, one.category, one.rule, one.right) for name, one in items.items()} == {
        "7": ("EPM", "backward", "letter occurs", "B"),
        "8_0": ("REC", "forward", "count", "0"),
        "8_1": ("REC", "forward", "count", "12"),
        "9_0": ("SSR", "forward", "yes or no", "Yes"),
        "9_1": ("SSR", "forward", "yes or no", "No"),
        "10_0": ("CRR", "forward", "yes or no", "No"),
        "10_1": ("CRR", "forward", "yes or no", "Yes"),
    }
    assert "A. on the floor; B. on the table; C. in the sink;" in items["7"].question
    assert items["7"].about == "Where was the cup?"
    assert "How many times did they open a door?" in items["8_1"].question
    assert "pour it" in items["9_1"].question
    assert "What does he do with the cup?" in items["10_0"].question
    assert [one.begin for one in items.values()] == [""] * 7


def test_ovo_bench_cuts_whole_videos_where_there_is_no_chunk(tmp_path: Path) -> None:
    write_json(tmp_path / "ovo_bench_new.json", files.OVO)
    whole = make(tmp_path / "src_videos" / "Ego4D" / "one.mp4")
    chunk = make(tmp_path / "chunked_videos" / "8_1.mp4")
    items = loaded("ovo-bench", tmp_path)
    assert (items["7"].video, items["7"].until_s) == (whole, 3.5)
    assert (items["8_1"].video, items["8_1"].until_s) == (chunk, None)
    assert items["8_0"].until_s == 2
    assert missing(items.values()) == [tmp_path / "src_videos" / "two.mp4"]
    make(tmp_path / "chunked_videos" / "7.mp4")
    assert loaded("ovo-bench", tmp_path)["7"].until_s is None


def test_streamingbench_questions_see_the_video_up_to_their_time(tmp_path: Path) -> None:
    write_json(tmp_path / "questions_real.json", files.REAL)
    video = make(tmp_path / "videos" / "sample_3_real.mp4")
    items = loaded("streamingbench", tmp_path)
    first, second = items["real[0].0"], items["real[0].1"]
    assert (first.task, first.category, first.right) == ("Object Recognition", "real", "B")
    assert (first.from_s, first.until_s, first.video) == (0, 2, video)
    assert "A. A red cup.\nB. A blue cup." in first.question
    assert second.until_s == 3  # MM:SS, as one official entry has it
    assert "A. 1.\nB. 2." in second.question
    assert "Earlier" not in second.question


def test_streamingbench_as_csv(tmp_path: Path) -> None:
    write_csv(tmp_path / "Real_Time_Visual_Understanding.csv", [files.CSV_ROW])
    video = make(tmp_path / "Real-Time Visual Understanding" / "sample_40" / "video.mp4")
    items = loaded("streamingbench", tmp_path)
    [(name, item)] = items.items()
    assert name == files.CSV_ROW["question_id"]
    assert (item.task, item.right, item.until_s) == ("Object Perception", "C", 481)
    assert item.video == video
    assert "What is it,\nright now?" in item.question
    assert "D. No cup." in item.question


def test_sequential_questions_carry_those_before(tmp_path: Path) -> None:
    write_json(tmp_path / "questions_sqa.json", files.SEQUENCE)
    first, second, third = loaded("streamingbench", tmp_path).values()
    assert {one.category for one in (first, second, third)} == {"sqa"}
    assert "Question 1?" not in second.about
    assert second.question.count("Answer: D") == 1
    assert third.question.count("Answer: D") == 2
    assert third.question.index("Question 1?") < third.question.index("Question 2?")
    assert third.question.index("Question 2?") < third.question.index("Question 3?")
    assert "Answer:" not in first.question
    apart = copy.deepcopy(files.SEQUENCE) + copy.deepcopy(files.SEQUENCE)
    write_json(tmp_path / "questions_sqa.json", apart)
    questions = [one.question for one in loaded("streamingbench", tmp_path).values()]
    assert [one.count("Answer: D") for one in questions] == [0, 1, 2, 0, 1, 2]


def test_proactive_questions_are_repeated(tmp_path: Path) -> None:
    write_json(tmp_path / "questions_proactive.json", files.PROACTIVE)
    [item] = loaded("streamingbench", tmp_path).values()
    assert (item.from_s, item.until_s) == (1, 7)
    assert item.right == "3: full"
    assert isinstance(item.polls, Polls)
    assert (item.polls.first, item.polls.last) == (2, 7)
    assert 'output "full"?' in item.question
    assert 'output "full"?' not in item.polls.then


def test_what_needs_sound_is_left_out_and_listed(tmp_path: Path) -> None:
    write_json(tmp_path / "questions_real.json", files.REAL)
    write_json(tmp_path / "questions_omni.json", files.OMNI)
    found = load(BENCHMARKS["streamingbench"], tmp_path)
    assert len(found.items) == 2
    [(reason, count)] = found.skipped.items()
    assert "questions_omni.json" in reason
    assert "sound" in reason
    assert count == 1


def test_egoschema_with_answers_and_without(tmp_path: Path) -> None:
    path = write_json(tmp_path / "subset.json", files.EGOSCHEMA)
    items = loaded("egoschema", tmp_path)
    assert {name: one.right for name, one in items.items()} == {"one": "C", "two": "E"}
    assert items["one"].begin == "Best option: ("
    assert "(A) sings\n(B) cooks" in items["one"].question
    full = copy.deepcopy(files.EGOSCHEMA)
    for entry in full:
        del entry["conversations"][0]["answer"]  # type: ignore[index]
    full_path = write_json(tmp_path / "full.json", full)
    with pytest.raises(SettingsError, match=r"2 files of questions.*--data FILE"):
        load(BENCHMARKS["egoschema"], tmp_path)
    assert {one.right for one in loaded("egoschema", full_path).values()} == {""}
    assert len(loaded("egoschema", path)) == 2


def test_mlvu_in_both_forms(tmp_path: Path) -> None:
    write_json(tmp_path / "rekv" / "dev_debug_mc.json", files.MLVU)
    video = make(tmp_path / "rekv" / "videos" / "5_order" / "order_1.mp4")
    items = list(loaded("mlvu", tmp_path / "rekv").values())
    assert [(one.task, one.right) for one in items] == [
        ("plotQA", "B"),
        ("plotQA", "A"),
        ("order", "B"),
    ]
    assert items[2].video == video
    write_json(tmp_path / "official" / "json" / "3_ego.json", files.MLVU_OFFICIAL)
    video = make(tmp_path / "official" / "video" / "3_ego" / "ego_1.mp4")
    [item] = loaded("mlvu", tmp_path / "official").values()
    assert (item.task, item.right, item.video) == ("ego", "B", video)


def test_video_mme_as_json(tmp_path: Path) -> None:
    write_json(tmp_path / "videomme.json", files.VIDEO_MME)
    video = make(tmp_path / "data" / "abc.mp4")
    items = list(loaded("video-mme", tmp_path).values())
    assert [(one.category, one.right) for one in items] == [
        ("short", "C"),
        ("short", "C"),
        ("long", "C"),
    ]
    assert "(A) A red cup.\n(B) A blue cup." in items[0].question
    assert items[0].video == video
    assert missing(items) == [tmp_path / "data" / "def.mp4"]


def test_video_mme_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'stc[benchmarks]'")
    from pyarrow import parquet

    path = tmp_path / "videomme" / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([files.VIDEO_MME_ROW]), path)
    video = make(tmp_path / "data" / "abc.mp4")
    [item] = loaded("video-mme", tmp_path).values()
    assert (item.id, item.task, item.category) == ("001-1", "Counting Problem", "medium")
    assert (item.right, item.video) == ("D", video)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SettingsError, match="no parquet"):
        load(BENCHMARKS["video-mme"], tmp_path)


def test_parquet_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "test.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SettingsError, match=r"test.parquet.*pyarrow.*stc\[benchmarks\].*JSON"):
        load(BENCHMARKS["video-mme"], tmp_path)


def without(*names: str | int) -> Callable[[Any], None]:
    """Takes the field at the end of the path `names` out."""

    def change(value: Any) -> None:
        *path, last = names
        for name in path:
            value = value[name]
        del value[last]

    return change


def setting(new: Any, *names: str | int) -> Callable[[Any], None]:
    """Sets the field at the end of the path `names`."""

    def change(value: Any) -> None:
        *path, last = names
        for name in path:
            value = value[name]
        value[last] = new

    return change


ASKED = (0, "questions", 0)
TALK = (0, "conversations", 0)
OVO, REAL = ("ovo-bench", "ovo_bench_new.json"), ("streamingbench", "questions_real.json")
DAMAGED: dict[str, tuple[str, str, Any, Callable[[Any], None], str]] = {
    "no task": (
        *(*OVO, files.OVO, without(0, "task")),
        r"ovo_bench_new.json\[0\].task: no such field, expected a task",
    ),
    "unknown task": (
        *(*OVO, files.OVO, setting("XYZ", 1, "task")),
        r"\[1\].task: got 'XYZ', expected EPM, .* or CRR",
    ),
    "no such option": (
        *(*OVO, files.OVO, setting(3, 0, "gt")),
        r"\[0\].gt: got 3, expected at least 0 and at most 2",
    ),
    "time": (
        *(*OVO, files.OVO, setting("2", 1, "test_info", 1, "realtime")),
        r"\[1\].test_info\[1\].realtime: got '2', expected seconds",
    ),
    "twice": (
        *(*OVO, files.OVO, setting(8, 2, "id")),
        r"holds the question 8_0 twice",
    ),
    "clock": (
        *(*REAL, files.REAL, setting("2 s", *ASKED, "time_stamp")),
        r"real.json\[0\].questions\[0\].time_stamp: got '2 s', expected a time HH:MM:SS",
    ),
    "answer": (
        *(*REAL, files.REAL, setting("E", *ASKED, "answer")),
        r"questions\[0\].answer: got 'E', expected A, B, C or D",
    ),
    "options": (
        *(*REAL, files.REAL, setting("A", *ASKED, "options")),
        r"questions\[0\].options: got 'A', expected a list",
    ),
    "no sequence": (
        *("streamingbench", "questions_sqa.json", files.REAL, lambda value: None),
        r"questions_sqa.json\[0\].entries: got .*, expected a list",
    ),
    "no question": (
        *("egoschema", "subset.json", files.EGOSCHEMA, setting(" ", *TALK, "question")),
        r"conversations\[0\].question: got ' ', expected text",
    ),
    "letter for a number": (
        *("egoschema", "subset.json", files.EGOSCHEMA, setting("B", *TALK, "answer")),
        r"conversations\[0\].answer: got 'B', expected a whole number",
    ),
    "no choice": (
        *("mlvu", "mlvu_dev.json", files.MLVU, setting("Green", *TALK, "answer")),
        r"conversations\[0\].answer: got 'Green', expected one of \['Red', 'Blue'\]",
    ),
    "duration": (
        *("video-mme", "videomme.json", files.VIDEO_MME, setting("huge", 0, "duration")),
        r"\[0\].duration: got 'huge', expected short, medium or long",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_entries_are_named(case: str, tmp_path: Path) -> None:
    name, file, value, change, expected = DAMAGED[case]
    damaged = copy.deepcopy(value)
    change(damaged)
    write_json(tmp_path / file, damaged)
    with pytest.raises(SettingsError, match=expected) as caught:
        load(BENCHMARKS[name], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_files_that_are_none_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such folder"):
        load(BENCHMARKS[name], tmp_path / "none")
    with pytest.raises(SettingsError, match=r"(no file of questions|none of its files), expected"):
        load(BENCHMARKS[name], tmp_path)
    file = {
        "ovo-bench": "ovo_bench.json",
        "streamingbench": "questions_real.json",
        "egoschema": "egoschema_subset.json",
        "mlvu": "mlvu_dev.json",
        "video-mme": "video-mme.json",
    }[name]
    for content, told in (
        (b'[{"id": 1', r"no JSON \(.*; correct it, or download the official file again"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b'{"a": 1}', "expected a list of entries"),
        (b"[]", "expected a list of entries"),
        (b"[3]", r"(\[0\]|\[0\]): got 3, expected an object"),
        (b'[{"id": NaN}]', r"no JSON \(NaN is no number\)"),
    ):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(SettingsError, match=rf"{file}.*{told}"):
            load(BENCHMARKS[name], tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"options": "['A. x"}, r"line 2.options: got .*, expected a list"),
        ({"question_id": "x"}, r"question_id: got 'x', expected PART_sample_NUMBER_NUMBER"),
        ({"time_stamp": "1:2:3:4"}, r"time_stamp: got '1:2:3:4'"),
        ({"answer": ""}, r"answer: got '', expected text"),
    ],
)
def test_damaged_rows_are_named(change: dict[str, str], told: str, tmp_path: Path) -> None:
    row = files.CSV_ROW | {"question": "One line?"} | change
    write_csv(tmp_path / "Real_Time_Visual_Understanding.csv", [row])
    with pytest.raises(SettingsError, match=told):
        load(BENCHMARKS["streamingbench"], tmp_path)


def test_rows_of_a_wrong_length_are_named(tmp_path: Path) -> None:
    path = tmp_path / "Real_Time_Visual_Understanding.csv"
    path.write_text("question_id,task_type\na\n")
    with pytest.raises(SettingsError, match=r"line 2: more or fewer columns"):
        load(BENCHMARKS["streamingbench"], tmp_path)
    path.write_text("question_id,task_type\n")
    with pytest.raises(SettingsError, match="no rows"):
        load(BENCHMARKS["streamingbench"], tmp_path)
    path.write_text('question_id,task_type\n"a"b,c\n')
    with pytest.raises(SettingsError, match="no CSV"):
        load(BENCHMARKS["streamingbench"], tmp_path)


def test_a_part_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = write_json(tmp_path / "questions_real.json", files.REAL)
    write_csv(tmp_path / "Real_Time_Visual_Understanding.csv", [files.CSV_ROW])
    with pytest.raises(SettingsError, match="holds part real twice"):
        load(BENCHMARKS["streamingbench"], tmp_path)
    assert len(loaded("streamingbench", path)) == 2
    other = write_json(tmp_path / "other.json", files.REAL)
    with pytest.raises(SettingsError, match="is none of its files, expected one of questions_real"):
        load(BENCHMARKS["streamingbench"], other)


@pytest.mark.parametrize("place", ["StreamingBench/src/data", "."])
def test_videos_lie_beside_the_questions_or_in_the_folder_named(place: str, tmp_path: Path) -> None:
    write_json(tmp_path / "StreamingBench" / "src" / "data" / "questions_real.json", files.REAL)
    video = make(tmp_path / place / "videos" / "sample_3_real.mp4")
    folder = tmp_path if place == "." else tmp_path / "StreamingBench"
    if place == ".":
        with pytest.raises(SettingsError, match="holds none of its files"):
            load(BENCHMARKS["streamingbench"], folder)  # three folders down
        (tmp_path / "StreamingBench" / "src").rename(tmp_path / "src")
    assert {one.video for one in loaded("streamingbench", folder).values()} == {video}


def test_a_path_that_no_file_can_have_is_a_missing_video(tmp_path: Path) -> None:
    entry = json.loads(json.dumps(files.REAL))
    entry[0]["video_path"] = "x" * 5000 + ".mp4"
    write_json(tmp_path / "questions_real.json", entry)
    items = loaded("streamingbench", tmp_path).values()
    assert len(missing(items)) == 1
