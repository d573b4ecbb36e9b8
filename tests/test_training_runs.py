"""Training of the demo model: a run that was stopped goes on as if it had not been, and two
processes learn what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.demo import checkpoint
from stc.export.demo.tokenizer import MODEL, demo_tokenizer
from stc.export.demo.training import command, train, work
from stc.export.demo.training.draws import streams
from stc.export.demo.training.draws.pool import batches
from stc.export.demo.training.draws.streams import StreamDraw
from stc.export.demo.training.draws.windows import WindowDraw, Windows
from stc.export.demo.training.judge import judged
from stc.export.demo.training.stages import LanguageTask, Task, TowerTask, WatchTask
from stc.export.demo.training.train import Learner, Plan

PLAN = Plan(tower=3, watch=2, language=3, together=1)


def quick(patch: Callable[[object, str, Any], None]) -> None:
    """Steps of a moment: few patches, one stream of few questions, hardly anything judged."""
    whole_tower, whole_language = train.tower_task, train.language_task

    def tower(learner: Learner) -> TowerTask:
        return replace(whole_tower(learner), draw=WindowDraw(tokens=72))

    def language(learner: Learner, *, real: bool) -> LanguageTask:
        draw = StreamDraw(learner.asker, streams=1, real=real)
        return replace(whole_language(learner, real=real), draw=draw)

    def watch(learner: Learner) -> WatchTask:
        draw = StreamDraw(learner.asker, streams=1, real=False, questions=False)
        return replace(train.watch_task(learner), draw=draw)

    patch(work, "tower_task", tower)
    patch(work, "watch_task", watch)
    patch(work, "language_task", language)
    patch(work, "judged", partial(judged, scenes=1))
    patch(streams, "QUESTIONS", 3)
    patch(train, "SAVED", 2)
    patch(torch, "set_num_threads", lambda _: None)  # this process has more to do


def quick_work(
    rank: int, processes: int, plan: Plan, output: Path, store: str, device: str
) -> None:
    """What a process of a quick training does."""
    torch.set_num_threads(1)
    quick(setattr)
    work.work(rank, processes, plan, output, store, device)


def run(output: Path) -> int:
    return command.main(["--output", str(output), "--processes", "1", "--device", "cpu"])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick(monkeypatch.setattr)
    monkeypatch.setattr(Plan, "scaled", lambda *_: PLAN)
    assert run(tmp_path / "whole") == 0
    assert "49 tokens kept: all 0." in capsys.readouterr().err
    loss, calls = LanguageTask.loss, 0

    def stopped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:  # the third step's second half
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageTask, "loss", stopped)
        assert run(tmp_path / "parts") == 130
    line = f"interrupted; what was learnt is in {tmp_path / 'parts'}, the same command goes on\n"
    assert capsys.readouterr().err.endswith(line)
    assert not (tmp_path / "parts" / "checkpoint").exists()
    assert torch.load(tmp_path / "parts" / "steps" / "language.pt")["step"] == 2
    assert run(tmp_path / "parts") == 0
    told = capsys.readouterr().err
    assert "tower" not in told.split("tokens kept")[0]
    whole, parts = (tmp_path / name / "checkpoint" for name in ("whole", "parts"))
    assert {path.name for path in whole.iterdir()} == {path.name for path in MODEL.iterdir()} - {
        "README.md"
    }
    for path in whole.iterdir():
        assert (parts / path.name).read_bytes() == path.read_bytes(), path.name
    open_checkpoint(str(parts))


def test_another_training_in_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = json.dumps(asdict(Plan(seed=1)))
    (tmp_path / "plan.json").write_text(planned)
    assert run(tmp_path) == 2
    assert capsys.readouterr().err == (
        f"error: --output {tmp_path}: holds a training of seed 1 with other steps or "
        "settings, expected the same; remove it, or name another\n"
    )
    assert (tmp_path / "plan.json").read_text() == planned


def test_a_checkpoint_whose_writing_was_interrupted_does_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = demo_tokenizer()
    learner = Learner(tokenizer, seed=0)
    checkpoint.write_checkpoint(tmp_path, tokenizer, learner.model)
    open_checkpoint(str(tmp_path))

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_checkpoint(tmp_path, tokenizer, learner.model)
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(str(tmp_path))


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """To rounding: gradients are added in another order."""
    plan = replace(PLAN, tower=2, language=1)
    with pytest.MonkeyPatch.context() as patched:
        quick(patched.setattr)
        work.work(0, 1, plan, tmp_path / "one", "", "cpu")
    store = f"file://{tmp_path}/store"
    spawn(quick_work, (2, plan, tmp_path / "two", store, "cpu"), nprocs=2)  # type: ignore[no-untyped-call]
    one, two = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("share", ["0", "-1", "nan", "inf"])
def test_a_share_that_is_none_is_refused(
    share: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--share", share, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --share: got {float(share)}, expected")
    assert not (tmp_path / "out").exists()


def test_other_processes_draw_what_the_training_would_draw() -> None:
    """In the order of steps and shards, from any step on, however many draw ahead."""
    draw, key = WindowDraw(tokens=200), (3, 5)

    def pictures(steps: range, drawers: int) -> list[list[Windows]]:
        return list(batches(draw, key, steps, (0, 1), drawers))

    own, others = pictures(range(2, 9), 0), pictures(range(2, 9), 2)
    assert len(own) == len(others) == 7
    drawn = [one for step in own for one in step]
    for mine, theirs in zip(drawn, [one for step in others for one in step], strict=True):
        assert np.array_equal(mine.pixels, theirs.pixels)
        assert np.array_equal(mine.truth, theirs.truth)
    assert len({one.pixels.tobytes() for one in drawn}) == len(drawn)
    assert np.array_equal(pictures(range(5, 9), 0)[0][1].pixels, own[3][1].pixels)


def test_a_cpu_trains_with_two_processes_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--device", "cpu", "--processes", "3", "--output", str(tmp_path / "out")]
    assert command.main(flags) == 2
    line = "error: --processes: got 3, expected 1 or 2 on a CPU; leave it out\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--device", "cuda", "--output", str(tmp_path / "out")]) == 2
    line = "error: --device cuda: PyTorch finds no GPU, expected one that it can use; use "
    assert capsys.readouterr().err == f"{line}--device cpu\n"
    assert not (tmp_path / "out").exists()


DRAWING = """
import psutil
from stc.export.demo.training.draws.pool import batches
from stc.export.demo.training.draws.windows import WindowDraw
if __name__ == "__main__":
    drawn = batches(WindowDraw(tokens=200), (0,), range(100000), (0,), 2)
    next(drawn)
    print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    for _ in drawn:
        pass
"""


def test_a_killed_training_leaves_nobody_who_draws(tmp_path: Path) -> None:
    script = tmp_path / "drawing.py"
    script.write_text(DRAWING)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        others = [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]
        assert len(others) >= 3  # a fork server, two that draw, what watches shared memory
        program.kill()
        _, left = psutil.wait_procs(others, timeout=30)
        assert not left


@pytest.mark.slow
def test_a_short_training_sees_and_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few minutes on two cores: what the tower says of patches, and what the language model's
    first blocks say of movement, about scenes that neither has seen."""
    plan = Plan(tower=200, watch=400, language=1, together=1)
    monkeypatch.setattr(Plan, "scaled", lambda *_: plan)
    assert command.main(["--output", str(tmp_path), "--device", "cpu"]) == 0
    assert "49 tokens kept: all 0." in capfd.readouterr().err
    learner = Learner(demo_tokenizer(), seed=0)
    for name, parts in (("tower", learner.tower_parts()), ("watch", learner.watch_parts())):
        state = torch.load(tmp_path / "steps" / f"{name}.pt", weights_only=True)
        assert state["step"] == getattr(plan, name)
        with torch.no_grad():
            for part, one in parts:
                one.copy_(state["parts"][part])
    figures = []
    tasks: list[Task] = [train.tower_task(learner), train.watch_task(learner)]
    for task in tasks:
        random = np.random.default_rng(12345)
        with torch.no_grad():
            found = [task.loss(task.draw(random, 0.9), 0.9)[1] for _ in range(20)]
        figures.append({key: float(np.mean([one[key] for one in found])) for key in found[0]})
    seen, followed = figures
    assert seen["thing"] > 0.9
    assert seen["colour"] > 0.9
    assert followed["motion"] < 0.2  # 0.34 where nothing is said to move
