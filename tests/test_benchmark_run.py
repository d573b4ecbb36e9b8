"""`stc-eval --benchmark` and `--score`: small videos in the official layouts, through the demo."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stc.runtime.commands import eval as eval_command
from stc.runtime.evaluate.benchmarks.running import Viewer
from tests import benchmark_files as files
from tests.as_user import ROOT
from tests.benchmark_files import clip, write_json, write_ovo

Outcome = subprocess.CompletedProcess[str]


@pytest.fixture
def ovo(tmp_path: Path) -> Path:
    return write_ovo(tmp_path / "ovo")


def evaluate(run_main: Callable[..., Outcome], *words: object) -> dict[str, Any]:
    """The document of a run that went well."""
    done = run_main(eval_command.main, *words, "--json", "-")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def records(output: Path, method: str) -> dict[str, dict[str, Any]]:
    """What is stored of `method`, by question."""
    _, *found = map(json.loads, (output / "scenes" / f"{method}.jsonl").read_text().splitlines())
    return {record["scene"]: record for record in found}


def test_questions_are_asked_at_their_time_and_scored(
    demo_bundle: Path, ovo: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    output = tmp_path / "out"
    words = (demo_bundle, "--benchmark", "ovo-bench", "--data", ovo, "--output", output)
    document = evaluate(run_main, *words, "--fps", "1", "--max-new-tokens", "3")
    assert document["questions"] == 5
    assert document["missing_videos"] == [str(ovo / "src_videos" / "gone.mp4")]
    assert (document["fps"], document["max_new_tokens"]) == (1, 3)
    assert document["memory"]["memory"] == "window"
    assert list(document["methods"]) == ["off", "paper"]
    for method, kept in (("off", 49), ("paper", 14)):
        found = records(output, method)
        # Seconds 0 to 3 of 3.5; 0 to 2 of 2; all three of the chunk.
        assert {name: one["frames"] for name, one in found.items()} == {"7": 4, "8_0": 3, "8_1": 3}
        assert {one["tokens"] for one in found.values()} == {3 * kept, 4 * kept}
        told = document["methods"][method]
        assert (told["answered"], told["asked"], told["questions"]) == (3, 5, 3)
        assert list(told["categories"]) == ["backward", "forward"]
        assert told["categories"]["forward"]["asked"] == 4
    done = run_main(
        eval_command.main, "--score", "ovo-bench", "--answers", output / "answers.jsonl"
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 5 answered" in done.stdout
    again = evaluate(run_main, "--score", "ovo-bench", "--answers", output / "answers.jsonl")
    for method, told in again["methods"].items():
        assert told == {name: document["methods"][method][name] for name in told}


def test_a_finished_run_asks_nothing_again(
    demo_bundle: Path,
    ovo: Path,
    tmp_path: Path,
    run_main: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[object] = [demo_bundle, "--benchmark", "ovo-bench", "--data", ovo]
    words += ["--output", tmp_path / "out", "--methods", "paper", "--max-new-tokens", "2"]
    first = evaluate(run_main, *words, "--limit", "1")
    assert first["methods"]["paper"]["answered"] == 1
    whole = evaluate(run_main, *words)
    assert whole["methods"]["paper"]["answered"] == 3
    monkeypatch.setattr(Viewer, "__init__", lambda *_, **__: pytest.fail("was opened"))
    again = evaluate(run_main, *words)
    assert again["methods"] == whole["methods"]
    done = run_main(eval_command.main, *words, "--fps", "2")
    assert done.returncode == 2
    assert "was measured with another fps; name another --output" in done.stderr


def test_a_run_that_was_killed_goes_on(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    """By SIGKILL after its first answer; what comes out is what an uninterrupted run says."""
    data = tmp_path / "data"
    entry = files.EGOSCHEMA[0]
    names = [f"v{number}" for number in range(12)]
    entries = [entry | {"video_id": one, "video_path": f"videos/{one}.mp4"} for one in names]
    write_json(data / "egoschema_subset.json", entries)
    for name in names:
        clip(data / "videos" / f"{name}.mp4", seconds=4)
    words = [str(demo_bundle), "--benchmark", "egoschema", "--data", str(data)]
    words += ["--methods", "paper", "--fps", "1"]
    output = tmp_path / "out"
    path = output / "scenes" / "paper.jsonl"
    started = subprocess.Popen(
        [sys.executable, "-m", "stc.runtime.commands.eval", *words, "--output", str(output)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 2:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    started.send_signal(signal.SIGKILL)
    started.wait()
    held = path.read_text().splitlines()
    assert 2 <= len(held) < 13
    with path.open("a") as file:
        file.write('{"scene": "v9", "te')  # a line that was being written
    went_on = evaluate(run_main, *words, "--output", output)
    sound = [line for line in held if line.endswith("}")]
    assert path.read_text().splitlines()[: len(sound)] == sound
    assert went_on["methods"]["paper"]["answered"] == 12
    whole = evaluate(run_main, *words, "--output", tmp_path / "whole")
    assert records(output, "paper") == records(tmp_path / "whole", "paper")
    assert went_on["methods"] == whole["methods"]


def test_every_benchmark_runs_with_every_memory(
    demo_bundle: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    full = copy.deepcopy(files.EGOSCHEMA)
    for entry in full:
        entry["conversations"][0]["answer"] = None  # type: ignore[index]
    cases: tuple[tuple[str, str, Any, tuple[str, ...]], ...] = (
        ("streamingbench", "questions_real.json", files.REAL, ("videos/sample_3_real.mp4",)),
        ("egoschema", "full.json", full, ("videos/one.mp4", "videos/two.mp4")),
        (
            *("mlvu", "dev_debug_mc.json", files.MLVU),
            ("videos/1_plotQA/movie_1.mp4", "5_order/order_1.mp4"),
        ),
        ("video-mme", "videomme.json", files.VIDEO_MME, ("data/abc.mp4", "def.mp4")),
    )
    memories = (
        ("--memory", "rekv", "--top-pages", "2"),
        ("--memory", "window", "--window", "60"),
        ("--memory", "all"),
        ("--memory", "rekv", "--prefill-every", "2"),
    )
    for (name, file, value, videos), memory in zip(cases, memories, strict=True):
        data = tmp_path / name
        write_json(data / file, value)
        for video in videos:
            clip(data / video)
        output = tmp_path / "out" / name
        words = (demo_bundle, "--benchmark", name, "--data", data, "--output", output)
        document = evaluate(run_main, *words, "--methods", "paper", *memory)
        assert document["methods"]["paper"]["answered"] == document["questions"]
        assert document["missing_videos"] == []
        assert document["memory"]["memory"] == memory[1]
    submission = (tmp_path / "out" / "egoschema" / "submission-paper.csv").read_text()
    head, *rows = submission.splitlines()
    assert head == "q_uid,answer"
    assert [row.split(",")[0] for row in rows] == ["one", "two"]
    assert all(row.split(",")[1] in "01234" for row in rows)
    assert not (tmp_path / "out" / "mlvu" / "submission-paper.csv").exists()


def test_what_cannot_be_run_leaves_no_folder_behind(
    demo_bundle: Path, ovo: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    output = tmp_path / "out"
    words = (demo_bundle, "--benchmark", "ovo-bench", "--data", ovo, "--output", output)
    done = run_main(eval_command.main, *words, "--methods", "pruner:budget=5000")
    assert (done.returncode, done.stdout) == (2, "")
    forged = files.OVO_CHOICE | {"question": "Is <|im_end|> here?"}
    write_json(ovo / "ovo_bench_new.json", [forged])
    done = run_main(eval_command.main, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "question 7: contains <|im_end|>" in done.stderr
    assert not output.exists()


def test_a_video_that_cannot_be_read_is_listed_and_not_scored(
    demo_bundle: Path, ovo: Path, tmp_path: Path, run_main: Callable[..., Outcome]
) -> None:
    broken = ovo / "src_videos" / "two.mp4"
    broken.write_bytes(b"no video at all")
    words = (demo_bundle, "--benchmark", "ovo-bench", "--data", ovo, "--output", tmp_path / "out")
    document = evaluate(run_main, *words, "--methods", "paper")
    assert list(document["unreadable_videos"]) == [str(broken)]
    assert (document["methods"]["paper"]["answered"], document["questions"]) == (2, 5)
    clip(broken)
    document = evaluate(run_main, *words, "--methods", "paper")
    assert document["unreadable_videos"] == {}
    assert document["methods"]["paper"]["answered"] == 3


def test_an_interrupted_run_says_how_to_go_on(
    demo_bundle: Path,
    ovo: Path,
    tmp_path: Path,
    run_main: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, output = Viewer.watch, tmp_path / "out"

    def stopped(*words: Any) -> Iterator[Any]:
        yield next(watch(*words))
        raise KeyboardInterrupt

    words = (demo_bundle, "--benchmark", "ovo-bench", "--data", ovo, "--output", output)
    with monkeypatch.context() as patched:
        patched.setattr(Viewer, "watch", stopped)
        done = run_main(eval_command.main, *words, "--methods", "paper", "--json", "-")
    assert (done.returncode, done.stdout) == (130, "")
    line = f"interrupted; answers are in {output}, the same command goes on\n"
    assert done.stderr == line
    assert list(records(output, "paper")) == ["7"]
    document = evaluate(run_main, *words, "--methods", "paper")
    assert document["methods"]["paper"]["answered"] == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--score", "mlvu"], "--score: requires --answers FILE"),
        (["B", "--score", "mlvu", "--answers", "F"], "--score: cannot be combined with BUNDLE"),
        (
            ["--score", "mlvu", "--answers", "F", "--methods", "off"],
            "--score: cannot be combined with --methods",
        ),
        (["B", "--answers", "F"], "--answers: requires --score"),
        (["B", "--fps", "1"], "--fps: requires --benchmark"),
        (["B", "--memory", "rekv"], "--memory: requires --benchmark"),
        (["B", "--benchmark", "mlvu"], "--benchmark: requires --data DIR, the folder of its files"),
        (
            ["B", "--benchmark", "mlvu", "--data", "D", "--frames", "3"],
            "--benchmark: cannot be combined with --frames",
        ),
        (
            ["B", "--benchmark", "mlvu", "--data", "D", "--fps", "0"],
            "--fps: got 0.0, expected a finite number above 0",
        ),
        (
            ["B", "--benchmark", "mlvu", "--data", "D", "--top-pages", "3"],
            "--top-pages: requires --memory rekv",
        ),
        (
            ["B", "--benchmark", "mlvu", "--data", "D", "--methods", "none"],
            "--methods: got 'none', expected one of",
        ),
        (
            ["--score", "mlvu", "--answers", "none.jsonl"],
            "--answers none.jsonl: cannot be read (No such file or directory); check the path",
        ),
        (
            ["--score", "mlvu", "--answers", "a.jsonl", "--json", "./a.jsonl"],
            "--json: ./a.jsonl is --answers as well; choose another path",
        ),
        (["--benchmark", "mlvu"], "the following arguments are required: BUNDLE"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    words: list[str], told: str, run_main: Callable[..., Outcome]
) -> None:
    done = run_main(eval_command.main, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {told}")
    assert done.stderr.count("\n") == 1
