"""A builder's process: one engine per job, written to the library.

A process of its own, because a builder holds the interpreter while it works, and because one that
dies (a board out of memory kills it) must not take the list of finished engines with it.
"""

from __future__ import annotations

import ctypes
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from stc.engines.build.compile import Recipe, compile_engine
from stc.engines.library.flavour import Flavour, load_tensorrt
from stc.engines.library.library import EngineLibrary
from stc.errors import StcError
from stc.manifest import FileEntry

REPORT_EVERY_S = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """Build `recipe` into file `name` of `library`."""

    name: str
    recipe: Recipe
    library: EngineLibrary


@dataclass(frozen=True)
class Phase:
    """A phase of the builder at work: `done` of `steps`."""

    name: str
    done: int
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `file`, or why there is none (`failure`, one line)."""

    file: FileEntry | None
    failure: str
    build_s: float
    peak_rss_bytes: int


def work(flavour: Flavour, owner: Connection) -> None:
    """Every job from `owner` is answered with phases and one outcome, until it closes."""
    # Ctrl-C reaches the whole group of processes; the one that owns the list decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that outlived its owner would write beside the next build's builders.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # An owner that is gone closed the pipe; nobody is left to tell.
    with suppress(EOFError, BrokenPipeError):
        while True:
            owner.send(_build(flavour, owner.recv(), owner))


def _build(flavour: Flavour, job: Job, owner: Connection) -> Outcome:
    begin = time.perf_counter()
    reported = 0.0

    def report(phase: str, done: int, steps: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= REPORT_EVERY_S:
            reported = now
            owner.send(Phase(phase, done, steps))

    file, failure = None, ""
    try:
        engine = compile_engine(load_tensorrt(flavour), job.recipe, report)
        file = job.library.store(job.name, engine)
    except StcError as error:
        # What it says of the graph; whoever reports it names the engine.
        failure = str(error).removeprefix(f"{job.recipe.spec.graph}: ")
    except OSError as error:
        failure = f"{job.library.folder}: cannot be written ({error.strerror})"
    return Outcome(file, failure, time.perf_counter() - begin, _peak_rss_bytes())


def _peak_rss_bytes() -> int:
    """Of this program alone; getrusage would tell that of the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
