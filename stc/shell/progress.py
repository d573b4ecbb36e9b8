"""A progress bar, for terminals; elsewhere a line now and then, or nothing."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic

from rich import progress
from rich.console import Console

from stc.errors import one_line

PLAIN_S = 30.0
"""Seconds between the lines of what takes long."""


class Progress(progress.Progress):
    """Rich's progress bar, which is none where `console` is no terminal.

    Rich's own ends in a blank line then, before version 15. There a line says how far a task is
    that was advanced, `every_s` seconds after the last one at the earliest; None for never.
    """

    def __init__(
        self,
        *columns: str | progress.ProgressColumn,
        console: Console,
        every_s: float | None = None,
    ) -> None:
        shown = console.is_terminal
        # Without, `track` advances step by step; its thread ends at once where nothing is shown.
        super().__init__(*columns, console=console, disable=not shown, auto_refresh=shown)
        self._every_s = every_s
        self._told_s = monotonic()

    def advance(self, task_id: progress.TaskID, advance: float = 1) -> None:
        """`task_id` is so many steps further."""
        super().advance(task_id, advance)
        now_s = monotonic()
        if self.disable and self._every_s is not None and now_s - self._told_s >= self._every_s:
            self._told_s = now_s
            [task] = (one for one in self.tasks if one.id == task_id)
            self._tell(task)

    def stop(self) -> None:
        if not self.disable:
            super().stop()

    def _tell(self, task: progress.Task) -> None:
        of = "" if task.total is None else f" of {task.total:,.0f}"
        took = timedelta(seconds=round(task.elapsed or 0.0))
        line = one_line(f"{task.description}: {task.completed:,.0f}{of} after {took}")
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
