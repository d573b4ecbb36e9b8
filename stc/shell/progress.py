"""A progress bar, for terminals only."""

from __future__ import annotations

from rich import progress


class Progress(progress.Progress):
    """Rich's progress bar, which says nothing when it is disabled.

    Rich's own ends in a blank line then, before version 15.
    """

    def stop(self) -> None:
        if not self.disable:
            super().stop()
