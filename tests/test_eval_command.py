"""`stc-eval` end to end, on made-up scenes and the smallest bundle that answers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.engines import onnxruntime_backend
from stc.runtime.commands.eval import main
from stc.runtime.evaluate import data as evaluate_data
from stc.runtime.evaluate.instrument import Instrument
from stc.runtime.evaluate.reader import EVERYTHING, Reader
from stc.runtime.stream.opening import open_backend
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, scaled
from tests.as_user import CLIP, standing
from tests.language_cases import language_case
from tests.made_scenes import QUESTIONS, MadeScene, made_scenes
from tests.own_process import ROOT

Outcome = subprocess.CompletedProcess[str]
Run = Callable[..., Outcome]
CHOSEN = "paper,cacher:reference_interval=3:selection=shared"
LABELS = ["off", *CHOSEN.split(","), "blind"]


@pytest.fixture(scope="module")
def bundle() -> Path:
    return language_case().bundle.root


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(evaluate_data, "frozen_test", made_scenes)
    yield


@pytest.fixture(scope="module")
def evaluated(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path, str]:
    """The document of a run, its folder, which nobody writes into, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("evaluated") / "out", io.StringIO()
    flags = ["--methods", CHOSEN, "--output", folder, "--max-new-tokens", 3, "--json", "-"]
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(printed):
        patched.setattr(evaluate_data, "frozen_test", made_scenes)
        patched.setattr(onnxruntime_backend, "share_threads", lambda: None)
        assert main(list(map(str, (bundle, *flags)))) == 0
    return json.loads(printed.getvalue().splitlines()[-1]), folder, printed.getvalue()


@pytest.fixture
def written(evaluated: tuple[dict[str, Any], Path, str], scenes: None, tmp_path: Path) -> Path:
    """A copy of the folder of that run."""
    return Path(shutil.copytree(evaluated[1], tmp_path / "written"))


def test_a_run_says_what_compression_costs(
    evaluated: tuple[dict[str, Any], Path, str],
) -> None:
    document, folder, printed = evaluated
    methods = document["methods"]
    assert list(methods) == LABELS
    assert (document["scenes"], document["questions"]) == (2, 6)
    off, paper, cacher, blind = methods.values()
    for one in methods.values():
        assert {"accuracy", "retention", "interval", "tower_cost", "questions"} <= set(one)
        assert (one["questions"], one["frames"]) == (6, 10)
        assert one["accuracy_interval"][0] <= one["accuracy"] <= one["accuracy_interval"][1]
        assert {name: of["questions"] for name, of in one["families"].items()} == {
            "now": 4,
            "backward": 2,
        }
        assert 0 <= one["mcnemar_p"] <= 1
    assert (
        off["tower_cost"] == off["tower_cost_ms"] == off["same_answer"] == off["tokens_cost"] == 1
    )
    assert off["kl_mean"] == off["right_to_wrong"] == off["relative_l2"] == 0
    assert off["cosine_min"] == pytest.approx(1)
    assert 0 < cacher["tower_cost"] < paper["tower_cost"] < 1
    assert cacher["settings"]["reference_interval"] == 3
    assert paper["tokens_per_frame"] == paper["settings"]["budget"]
    assert cacher["tokens_per_frame"] == off["tokens_per_frame"]
    assert [one["since_reference"] for one in cacher["drift"]] == [0, 1, 2]
    assert [one["frames"] for one in cacher["drift"]] == [4, 4, 2]
    assert cacher["drift"][0]["cosine_min"] == pytest.approx(1)
    assert cacher["drift"][1]["cosine"] < 1
    assert 0 < paper["recall_chance"] < paper["recall"] <= 1
    assert 0 < paper["jaccard"] <= 1 and cacher["jaccard"] is None
    assert paper["kl_mean"] > 0 and blind["kl_mean"] > 0
    assert (blind["tokens_per_frame"], blind["tower_cost"], blind["cosine"]) == (0, 0, None)
    # Of two kinds with one answer and one of two options.
    assert document["baselines"] == {
        "chance": pytest.approx((1 + 0.5 + 1) / 3),
        "majority": 1.0,
        "blind": blind["accuracy"],
    }
    for label in LABELS:
        assert label.split(":")[0] in printed
    assert f"report: {folder}/report.html" in printed


def test_answers_are_those_of_a_stream_session(
    evaluated: tuple[dict[str, Any], Path, str], bundle: Path
) -> None:
    """What is scored is what stc-run would have said."""
    _, folder, _ = evaluated
    opened = Bundle.open(bundle)
    backend = open_backend(opened, "cpu")
    spec = opened.manifest.vision
    reader = Reader(opened, backend, 3)
    tower = VisionTower(backend, spec, opened.manifest.provenance.precision)
    for label, chosen in (
        ("off", PRESETS["off"]),
        ("paper", scaled(PRESETS["paper"], spec.pooled)),
    ):
        lines = (folder / "scenes" / f"{label}.jsonl").read_text().splitlines()[1:]
        for line, (scene, questions) in zip(lines, made_scenes(), strict=True):
            given = [one["answer"] for one in json.loads(line)["questions"]]
            assert given == session_answers(reader, tower, chosen, scene, questions)
    backend.close()


def session_answers(
    reader: Reader, tower: VisionTower, chosen: Any, scene: MadeScene, questions: Any
) -> list[str]:
    from stc.runtime.answers.stream_language import StreamLanguage

    memory = EVERYTHING.make(reader._model, len(reader._prompt.before), tower.spec.pooled)
    language = StreamLanguage(reader._model, memory, reader._prompt)
    answers = []
    with closing(StreamSession(tower, chosen, language)) as session:
        for index, rgb in enumerate(scene.frames()):
            session.push(Frame(index=index, time_s=float(index), rgb=rgb))
            for question in questions:
                if question.frame == index:
                    answers.append(str(session.ask(question.text, 3)))
    return answers


def test_tables_hold_every_question_and_method(
    evaluated: tuple[dict[str, Any], Path, str],
) -> None:
    document, folder, _ = evaluated
    with (folder / "questions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * len(LABELS)
    for label in LABELS:
        of = [row for row in rows if row["method"] == label]
        assert [row["text"] for row in of] == [one.text for one in QUESTIONS] * 2
        right = sum(row["right"] == "True" for row in of)
        assert right / 6 == document["methods"][label]["accuracy"]
    with (folder / "methods.csv").open() as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    assert list(table) == LABELS
    for label, row in table.items():
        assert float(row["tower_cost"]) == document["methods"][label]["tower_cost"]
        assert (
            float(row["accuracy_now"]) == document["methods"][label]["families"]["now"]["accuracy"]
        )


def test_the_page_is_whole_and_needs_nothing_else(
    evaluated: tuple[dict[str, Any], Path, str],
) -> None:
    _, folder, _ = evaluated
    text = (folder / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>\n")
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link", text)
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text and "max-width" in text
    drawn = [one for one in root.iter() if one.tag == "svg"]
    # Two of accuracy, one for each family, and the drift.
    assert len(drawn) == 2 + 2 + 1
    for one in drawn[:2]:
        assert len(list(one.iter("circle"))) == len(LABELS)
    told = "".join(root.itertext())
    for label in LABELS:
        assert label in told
    cells = [[cell.text for cell in row] for row in root.iter("tr")]
    assert {len(row) for row in cells} == {len(cells[0])}


def test_what_is_finished_is_not_measured_again(
    evaluated: tuple[dict[str, Any], Path, str],
    written: Path,
    bundle: Path,
    run_main: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    document, folder = evaluated[0], written
    measured: list[str] = []
    real = Instrument._measured

    def counted(self: Instrument, label: str, scene: Any) -> Any:
        measured.append(f"{label} {scene.item.key}")
        return real(self, label, scene)

    monkeypatch.setattr(Instrument, "_measured", counted)
    flags = ["--output", folder, "--max-new-tokens", 3, "--json", "-"]
    again = run_main(main, bundle, *flags, "--methods", CHOSEN)
    assert json.loads(again.stdout.splitlines()[-1]) == document
    assert measured == []
    more = run_main(main, bundle, *flags, "--methods", f"{CHOSEN},cacher")
    assert measured == ["cacher 00000", "cacher 00001"]
    methods = json.loads(more.stdout.splitlines()[-1])["methods"]
    assert {label: methods[label] for label in LABELS} == document["methods"]
    torn = folder / "scenes" / "paper.jsonl"
    torn.write_bytes(torn.read_bytes()[:-7])
    run_main(main, bundle, *flags, "--methods", CHOSEN)
    assert measured[2:] == ["paper 00001"]


def test_another_run_in_the_same_folder_is_refused(
    written: Path, bundle: Path, run_main: Run
) -> None:
    folder = written
    before = standing(folder)
    done = run_main(main, bundle, "--methods", CHOSEN, "--output", folder, "--max-new-tokens", 4)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {folder}/scenes/off.jsonl: was measured with another max_new_tokens; name another "
        "--output, or start over with --force\n"
    )
    assert {name: of[0] for name, of in standing(folder).items()} == {
        name: of[0] for name, of in before.items()
    }
    flags = ["--output", folder, "--max-new-tokens", 4, "--force", "--limit", 1, "--json", "-"]
    done = run_main(main, bundle, "--methods", CHOSEN, *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["questions"] == 3


def test_a_killed_run_goes_on(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    flags = ["--output", folder, "--methods", "paper", "--max-new-tokens", 3, "--json", "-"]
    words = [sys.executable, "-m", "tests.made_scenes", *map(str, (bundle, *flags))]
    running = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    path, end = folder / "scenes" / "paper.jsonl", time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    kept = path.read_bytes().splitlines()[:3]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = path.read_bytes().splitlines()
    assert lines[:3] == kept
    assert [json.loads(line)["scene"] for line in lines[1:]] == [f"{n:05d}" for n in range(8)]
    assert json.loads(done.stdout.splitlines()[-1])["methods"]["paper"]["questions"] == 24


def test_an_interrupt_says_how_to_go_on(
    bundle: Path,
    scenes: None,
    tmp_path: Path,
    run_main: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Instrument._measured

    def stopped(self: Instrument, label: str, scene: Any) -> Any:
        if label == "paper":
            raise KeyboardInterrupt
        return real(self, label, scene)

    monkeypatch.setattr(Instrument, "_measured", stopped)
    flags = ["--methods", "paper", "--output", tmp_path / "out", "--json", tmp_path / "o.json"]
    done = run_main(main, bundle, *flags)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == (
        f"interrupted; finished scenes are in {tmp_path}/out, the same command goes on\n"
    )
    assert not (tmp_path / "o.json").exists()
    assert len((tmp_path / "out" / "scenes" / "off.jsonl").read_text().splitlines()) == 2


def test_a_clip_is_measured_without_questions(
    exported: Callable[[str], Any], tmp_path: Path, run_main: Run
) -> None:
    """A bundle without a language side will do."""
    folder, root = tmp_path / "out", exported("half").bundle.root
    flags = ["--data", f"clip:{CLIP}", "--frames", 6, "--methods", "cacher", "--output", folder]
    done = run_main(main, root, *flags, "--json", tmp_path / "o.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "o.json").read_text())
    assert list(document["methods"]) == ["off", "cacher"]
    cacher = document["methods"]["cacher"]
    assert (cacher["questions"], cacher["accuracy"], cacher["kl_mean"]) == (0, None, None)
    assert [one["frames"] for one in cacher["drift"]] == [2, 2, 1, 1]
    assert cacher["drift"][-1]["cosine"] < cacher["drift"][0]["cosine"]
    assert "accuracy" not in done.stdout
    page = (folder / "report.html").read_text()
    ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert (folder / "questions.csv").read_text() == ""


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--data", "films"], "--data: got 'films', expected scenes or clip:FILE"),
        (
            ["--data", str(ROOT / "tests")],
            f"--data: got '{ROOT}/tests', expected scenes or clip:FILE; a folder of a benchmark's "
            "files takes --benchmark NAME too",
        ),
        (
            ["--data", str(CLIP)],
            f"--data: got '{CLIP}', expected scenes or clip:FILE; write clip:{CLIP} for a video, "
            "or --benchmark NAME too for its questions",
        ),
        (["--frames", "3"], "--frames: requires --data clip:FILE"),
        (["--data", "clip:x", "--limit", "3"], "--limit: has no effect with --data clip:FILE"),
        (["--data", "clip:x.mp4"], "x.mp4: no such file; check the path"),
        (["--methods", "none"], "--methods: got 'none', expected one of off, cacher"),
        (["--methods", "paper:budget=1000"], "--budget: got 1000, expected at most"),
        (["--device", "cuda", "--backend", "tensorrt"], "--device cuda: --backend tensorrt"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], line: str, bundle: Path, scenes: None, tmp_path: Path, run_main: Run
) -> None:
    done = run_main(main, bundle, *flags, "--output", tmp_path / "out", "--json", tmp_path / "o")
    assert (done.returncode, done.stdout) == (2, "")
    [told] = done.stderr.splitlines()
    assert told.startswith(f"error: {line}")
    assert standing(tmp_path) == {}


def test_questions_need_a_bundle_that_answers(
    exported: Callable[[str], Any], scenes: None, tmp_path: Path, run_main: Run
) -> None:
    root = exported("half").bundle.root
    done = run_main(main, root, "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {root}: has no language side; export again with: ")
    done = run_main(main, root, "--data", f"clip:{CLIP}", "--methods", "blind")
    assert done.stderr == f"error: --methods blind: clip:{CLIP} asks nothing\n"
    assert standing(tmp_path) == {}


def test_outputs_never_land_on_what_is_read(
    bundle: Path, tmp_path: Path, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, tmp_path / "bundle")
    shutil.copy(CLIP, tmp_path / "v.mp4")
    for flags, line in (
        (["--output", "bundle/out"], "--output: bundle/out is inside the bundle bundle"),
        (["--json", "v.mp4", "--data", "clip:v.mp4"], "--json: v.mp4 is --video as well"),
    ):
        before = standing(tmp_path)
        done = run_main(main, "bundle", *flags)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {line}")
        assert standing(tmp_path) == before
