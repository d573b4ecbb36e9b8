"""A progress bar, for terminals only."""

from __future__ import annotations

from rich import progress
from rich.console import Console


class Progress(progress.Progress):
    """Rich's progress bar, which says nothing where `console` is no terminal.

    Rich's own ends in a blank line then, before version 15.
    """

    def __init__(self, *columns: str | progress.ProgressColumn, console: Console) -> None:
        super().__init__(*columns, console=console, disable=not console.is_terminal)

    def stop(self) -> None:
        if not self.disable:
            super().stop()
