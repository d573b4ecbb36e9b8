"""How a build goes on, shown: engines done and left, time, and what each builder does."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn

from stc.engines.build.worker import Phase
from stc.shell.command import Console
from stc.shell.progress import Progress


class BuildProgress:
    """A bar for all engines and a line per builder; see `stc.engines.build.builders.BuildObserver`.

    A context manager. Shows nothing when `console` is no terminal.
    """

    def __init__(self, engines: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("engines", total=engines)
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> BuildProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, engine: str) -> None:
        self._lines[engine] = self._progress.add_task(engine, total=None)

    def phase(self, engine: str, phase: Phase) -> None:
        self._progress.update(
            self._lines[engine],
            description=f"{engine}: {phase.name}"[:60],
            completed=phase.done,
            total=phase.steps,
        )

    def finished(self, engine: str) -> None:
        self._progress.remove_task(self._lines.pop(engine))
        self._progress.advance(self._all)

    def compared(self, graph: str) -> None:
        """`graph` was compared with ONNX Runtime."""
        self._progress.update(self._all, advance=1, description=f"compared {graph}"[:60])
