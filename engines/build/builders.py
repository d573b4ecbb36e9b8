"""Builder processes: jobs handed out, phases and outcomes taken in and shown.

A process of its own builds, because a builder holds the interpreter while it works, and because one
that dies (a board out of memory kills it) must not take the list of finished engines with it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from stc.engines.build.compile import Recipe, compile_engine
from stc.engines.build.layers import EngineLayers, list_layers
from stc.engines.gpu.cuda import stated_bytes
from stc.engines.library.library import EngineLibrary
from stc.engines.library.targets import Flavour, load_tensorrt
from stc.errors import EngineError, StcError
from stc.manifest import FileEntry
from stc.shell.command import Console
from stc.shell.progress import PLAIN_S, Progress

_OUT_OF_MEMORY = "out of memory kills builders: close programs, add swap, or use --jobs 1"
_CRASHED = "the compiler crashed: try --jobs 1, or report it with what stc-doctor prints"
REPORT_EVERY_S = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """Build `recipe` into file `name` of `library`, or list its layers where it is detailed."""

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
    """What became of a job: `file` or `layers`, or why there is none (`failure`, one line)."""

    file: FileEntry | None
    failure: str
    build_s: float
    peak_rss_bytes: int
    layers: EngineLayers | None = None


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

    file, layers, failure = None, None, ""
    try:
        if job.recipe.detailed:
            layers = list_layers(load_tensorrt(flavour), job.recipe, report)
        else:
            engine = compile_engine(load_tensorrt(flavour), job.recipe, report)
            file = job.library.store(job.name, engine)
    except StcError as error:
        # What it says of the graph; whoever reports it names the engine.
        failure = str(error).removeprefix(f"{job.recipe.spec.graph}: ")
    except OSError as error:
        failure = f"{job.library.folder}: cannot be written ({error.strerror})"
    # Of this program alone; getrusage would tell that of the process that started it.
    peak_rss_bytes = stated_bytes(Path("/proc/self/status"), "VmHWM")
    return Outcome(file, failure, time.perf_counter() - begin, peak_rss_bytes, layers)


class BuildProgress(Progress):
    """How a build goes on, shown: a bar for all engines and a line per builder.

    Where `console` is no terminal, a line says now and then how many there are.
    """

    def __init__(self, engines: int, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            every_s=PLAIN_S,
        )
        self._all = self.add_task("engines", total=engines)
        self._lines: dict[str, TaskID] = {}

    def began(self, engine: str) -> None:
        """A builder took up `engine`."""
        self._lines[engine] = self.add_task(engine, total=None)

    def phase(self, engine: str, phase: Phase) -> None:
        """The builder of `engine` is in `phase`."""
        self.update(
            self._lines[engine],
            description=f"{engine}: {phase.name}"[:60],
            completed=phase.done,
            total=phase.steps,
        )

    def built(self, engine: str) -> None:
        """`engine` is built and in the list."""
        self.remove_task(self._lines.pop(engine))
        self.advance(self._all)

    def compared(self, graph: str) -> None:
        """`graph` was compared with ONNX Runtime."""
        self.update(self._all, description=f"compared {graph}"[:60])
        self.advance(self._all)


class Builders:
    """Builder processes; a context manager that leaves none behind."""

    def __init__(self, flavour: Flavour, count: int, progress: BuildProgress) -> None:
        self._flavour = flavour
        self._count = count
        self._progress = progress
        self._processes: dict[Connection, BaseProcess] = {}
        self._jobs: dict[Connection, Job] = {}

    def __enter__(self) -> Builders:
        # A fresh interpreter each: a forked one would inherit a CUDA context it cannot use.
        context = multiprocessing.get_context("spawn")
        # Starting it unblocks what is blocked below, so that the first builder would hear it.
        resource_tracker.ensure_running()
        for _ in range(self._count):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(self._flavour, there), daemon=True)
            with _unheard(signal.SIGINT):
                process.start()
            there.close()
            self._processes[here] = process
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            if connection in self._jobs:
                process.terminate()
            connection.close()
            process.join()

    def outcomes(self, jobs: deque[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job with its outcome, in the order they finish."""
        for connection in self._processes:
            self._next(connection, jobs)
        while self._jobs:
            ready = wait(list(self._jobs))
            for connection in [known for known in self._jobs if known in ready]:
                job = self._jobs[connection]
                message = self._receive(connection, job)
                if isinstance(message, Phase):
                    self._progress.phase(job.recipe.spec.stem, message)
                    continue
                del self._jobs[connection]
                self._next(connection, jobs)
                yield job, message

    def _next(self, connection: Connection, jobs: deque[Job]) -> None:
        if not jobs:
            return
        job = jobs.popleft()
        self._jobs[connection] = job
        self._progress.began(job.recipe.spec.stem)
        connection.send(job)

    def _receive(self, connection: Connection, job: Job) -> Phase | Outcome:
        try:
            message: Phase | Outcome = connection.recv()
        except EOFError:
            process = self._processes[connection]
            process.join()
            raise EngineError(
                job.recipe.spec.stem,
                f"its builder died (exit code {process.exitcode})",
                "",
                f"{_OUT_OF_MEMORY if process.exitcode == -signal.SIGKILL else _CRASHED}; "
                "what is built stays",
            ) from None
        return message


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """What the body starts never hears signal `number`, which waits for this process meanwhile.

    A builder stopped while it still imports would say so with a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
