"""`scripts/train-demo`: the demo model from nothing, on two processes or a GPU."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.multiprocessing.spawn import spawn

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
        "--processes", type=whole_flag(1, 2), default=2, metavar="1|2", help="default 2"
    )
    return parser.parse_args(arguments)


def _train(flags: argparse.Namespace) -> int:
    share = real("--share", flags.share, "a finite number above 0", above=0)
    plan = Plan(seed=flags.seed).scaled(share)
    flags.output.mkdir(parents=True, exist_ok=True)
    try:
        with unmasked_stops():
            _work(plan, flags.output, flags.processes)
    except KeyboardInterrupt:
        command.stop_handled()
        line = f"interrupted; what was learnt is in {flags.output}, the same command goes on"
        command.Console(stderr=True).say(line)
        return command.INTERRUPTED
    return 0


def _work(plan: Plan, output: Path, processes: int) -> None:
    if processes == 1:
        work(0, 1, plan, output, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        spawn(work, (2, plan, output, store), nprocs=2)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
