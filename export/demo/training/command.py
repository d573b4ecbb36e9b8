"""`scripts/train-demo`: the demo model from nothing, on a GPU where there is one, else on two
processes of a CPU."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from stc.errors import SettingsError
from stc.export.demo.training.train import Plan
from stc.export.demo.training.work import work
from stc.shell import command
from stc.shell.ranges import number_flag, real, whole_flag
from stc.shell.stops import unmasked_stops


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _train(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="train-demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("out/train-demo"), metavar="DIR")
    parser.add_argument("--seed", type=whole_flag(0), default=0, metavar="N")
    parser.add_argument(
        "--share",
        type=number_flag,
        default=1.0,
        metavar="X",
        help="of the steps that are done, default 1: all",
    )
    parser.add_argument(
        "--processes",
        type=whole_flag(1),
        metavar="N",
        help="on a CPU 1 or 2 that train, default 2; on a GPU those that draw scenes for it, "
        "default all processors but one",
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default cuda where PyTorch finds it",
    )
    return parser.parse_args(arguments)


def _train(flags: argparse.Namespace) -> int:
    share = real("--share", flags.share, "a finite number above 0", above=0)
    plan = Plan(seed=flags.seed).scaled(share)
    processes = _processes(flags.processes, flags.device)
    flags.output.mkdir(parents=True, exist_ok=True)
    _refuse_another(plan, flags.output)
    try:
        with unmasked_stops():
            _work(plan, flags.output, processes, flags.device)
    except KeyboardInterrupt:
        command.stop_handled()
        line = f"interrupted; what was learnt is in {flags.output}, the same command goes on"
        command.Console(stderr=True).say(line)
        return command.INTERRUPTED
    return 0


def _refuse_another(plan: Plan, output: Path) -> None:
    """Raise SettingsError when `output` holds the steps of another plan; else it holds this one."""
    file = output / "plan.json"
    planned = asdict(plan)
    if file.exists() and (begun := json.loads(file.read_text())) != planned:
        got = f"holds a training of seed {begun['seed']} with other steps or settings"
        raise SettingsError(f"--output {output}", got, "the same", "remove it, or name another")
    file.write_text(json.dumps(planned))


def _processes(asked: int | None, device: str) -> int:
    """How many work beside a GPU or are the training; raises SettingsError for more than two, and
    where there is no GPU."""
    if device != "cpu" and not torch.cuda.is_available():
        raise SettingsError(
            "--device cuda", "PyTorch finds no GPU", "one that it can use", "use --device cpu"
        )
    if device != "cpu":
        return asked or max(1, len(os.sched_getaffinity(0)) - 1)
    if asked is not None and asked > 2:
        raise SettingsError("--processes", f"got {asked}", "1 or 2 on a CPU", "leave it out")
    return asked or 2


def _work(plan: Plan, output: Path, processes: int, device: str) -> None:
    if processes == 1 or device != "cpu":
        work(0, processes, plan, output, "", device)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        whole = (processes, plan, output, store, device)
        spawn(work, whole, nprocs=processes)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
