"""`stc-eval` over hours: what it says, where its documents go, what it asks a GPU for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.errors import EngineError
from stc.runtime.commands import eval as eval_command
from stc.runtime.evaluate import data as evaluate_data
from stc.runtime.stream import opening
from stc.runtime.stream.stream import open as open_bundle
from tests.as_user import CLIP, standing
from tests.benchmark_files import write_ovo
from tests.language_cases import language_case
from tests.made_scenes import QUESTIONS, MadeScene, made_scenes

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def evaluate(run_main: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`stc-eval` on made-up scenes, whose answers are a token long, and which says all it may."""
    monkeypatch.setattr(evaluate_data, "frozen_test", made_scenes)
    monkeypatch.setattr(eval_command, "PLAIN_S", 0.0)
    monkeypatch.setattr("stc.runtime.commands.benchmark.PLAIN_S", 0.0)

    def run(*words: object, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
        root = bundle or language_case().bundle.root
        return run_main(eval_command.main, root, *words, "--max-new-tokens", 1)

    return run


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a run that went well said, without its times."""
    assert done.returncode == 0, done.stderr
    return [line.partition(" after ")[0] for line in done.stderr.splitlines()]


def test_a_run_without_a_terminal_says_how_far_it_is_and_goes_on(
    evaluate: Run, tmp_path: Path
) -> None:
    words = ("--methods", "paper", "--output", tmp_path / "out")
    # Of 3 questions to 3 methods: dense and blind are always measured.
    assert lines(evaluate(*words, "--limit", 1)) == [
        f"questions measured: {there} of 9" for there in (3, 6, 9)
    ]
    assert lines(evaluate(*words)) == [
        "goes on: 9 of 18 questions are there, of 3 methods",
        *(f"questions measured: {there} of 18" for there in (12, 15, 18)),
    ]
    assert lines(evaluate(*words)) == ["goes on: 18 of 18 questions are there, of 3 methods"]
    assert len(lines(evaluate(*words, "--force"))) == 6


def test_a_clip_counts_as_one(evaluate: Run, tmp_path: Path) -> None:
    words = ("--data", f"clip:{CLIP}", "--frames", 1, "--output", tmp_path)
    first = lines(evaluate(*words, "--methods", "off"))
    assert first == ["clips measured: 1 of 1"]
    assert lines(evaluate(*words, "--methods", "cacher")) == [
        "goes on: 1 of 2 clips are there, of 2 methods",
        "clips measured: 2 of 2",
    ]


def test_a_benchmark_says_the_same(evaluate: Run, demo_bundle: Path, tmp_path: Path) -> None:
    data = write_ovo(tmp_path / "ovo")
    words: list[object] = ["--benchmark", "ovo-bench", "--data", data, "--methods", "paper"]
    words += ["--output", tmp_path / "out"]
    first = lines(evaluate(*words, "--limit", 1, bundle=demo_bundle))
    assert first == ["questions answered: 1 of 1"]
    again = lines(evaluate(*words, bundle=demo_bundle))
    assert again[0] == "goes on: 1 of 5 questions are there"
    assert again[-1] == "questions answered: 3 of 3"  # videos of the others are missing


@pytest.mark.parametrize("inside", ["o.json", "new/folder/o.json"])
def test_a_document_goes_into_the_folder_that_the_command_makes(
    inside: str, evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--methods", "off", "--limit", 1, "--output", "made/out"]
    done = evaluate(*words, "--json", f"made/out/{inside}")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(f"made/out/{inside}").read_text())["questions"] == 3


def test_a_document_elsewhere_needs_its_folder_at_once(
    evaluate: Run, demo_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words: list[object] = ["--methods", "off", "--output", output]
    done = evaluate(*words, "--json", tmp_path / "other" / "o.json")
    assert done.stderr.startswith(f"error: --json {tmp_path}/other/o.json: cannot be written (No")
    benchmark = ["--benchmark", "ovo-bench", "--data", write_ovo(tmp_path / "ovo"), "--limit", 1]
    done = evaluate(*words, *benchmark, "--json", output / "a" / "o.json", bundle=demo_bundle)
    assert done.returncode == 0, done.stderr
    assert json.loads((output / "a" / "o.json").read_text())["questions"] == 1


def test_a_run_that_fails_makes_no_folder_for_its_document(evaluate: Run, tmp_path: Path) -> None:
    words = ["--output", tmp_path / "out", "--json", tmp_path / "out" / "o.json"]
    assert evaluate(*words, "--methods", "paper:budget=1000").returncode == 2
    assert standing(tmp_path) == {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that every backend is opened for, none of which is here."""
    asked: list[int] = []

    def opened(*_: object, context: int, **__: object) -> Any:
        asked.append(context)
        raise EngineError("GPU", "is not here")

    monkeypatch.setattr(opening, "open_backend", opened)
    monkeypatch.setattr("stc.runtime.stream.stream.open_backend", opened)
    return asked


def test_a_gpu_is_asked_for_room_for_what_is_fetched(
    evaluate: Run, asked: list[int], demo_bundle: Path, tmp_path: Path
) -> None:
    data = write_ovo(tmp_path / "ovo")
    words: list[object] = ["--benchmark", "ovo-bench", "--data", data, "--memory", "rekv"]
    done = evaluate(*words, "--output", tmp_path / "out", bundle=demo_bundle)
    assert done.stderr == "error: GPU: is not here\n"
    with pytest.raises(EngineError):
        open_bundle(demo_bundle, preset="paper", memory="rekv")
    # 64 frames of 49 tokens, and of 14
    assert asked == [4096 + 4096, 4096 + 4096]


@pytest.mark.parametrize(("frames", "rows"), [(5, 1024), (180, 1024), (181, 4096)])
def test_a_gpu_is_asked_for_room_for_all_frames_of_a_stream(
    frames: int, rows: int, evaluate: Run, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 tokens each, three quarters of the rows that are not those of a call."""
    scenes = [(MadeScene(0), QUESTIONS), (MadeScene(1, frames), QUESTIONS)]
    monkeypatch.setattr(evaluate_data, "frozen_test", lambda: scenes)
    assert evaluate("--methods", "off").stderr == "error: GPU: is not here\n"
    assert asked == [rows]
