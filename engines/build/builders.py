"""Builder processes: jobs handed out, phases and outcomes taken in."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from stc.engines.build.worker import Job, Outcome, Phase, work
from stc.engines.library.flavour import Flavour
from stc.errors import EngineError

_OUT_OF_MEMORY = "out of memory kills builders: close programs, add swap, or use --jobs 1"
_CRASHED = "the compiler crashed: try --jobs 1, or report it with what stc-doctor prints"


class BuildObserver(Protocol):
    """Told how a build goes on."""

    def started(self, engine: str) -> None:
        """A builder took up `engine`."""
        ...

    def phase(self, engine: str, phase: Phase) -> None:
        """The builder of `engine` is in `phase`."""
        ...

    def finished(self, engine: str) -> None:
        """`engine` is built and in the list."""
        ...


class Builders:
    """Builder processes; a context manager that leaves none behind."""

    def __init__(self, flavour: Flavour, count: int, observer: BuildObserver) -> None:
        self._flavour = flavour
        self._count = count
        self._observer = observer
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
                    self._observer.phase(job.recipe.spec.stem, message)
                    continue
                del self._jobs[connection]
                self._next(connection, jobs)
                yield job, message

    def _next(self, connection: Connection, jobs: deque[Job]) -> None:
        if not jobs:
            return
        job = jobs.popleft()
        self._jobs[connection] = job
        self._observer.started(job.recipe.spec.stem)
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
