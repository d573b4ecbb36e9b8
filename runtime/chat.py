"""Questions typed at a terminal while a stream runs."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO

from stc.errors import SettingsError

HINT = "ask a question and press Enter; end with Ctrl-D"


class Chat:
    """The lines a user types, without waiting for them.

    Raises SettingsError when `typed` is not a terminal.
    """

    def __init__(self, typed: IO[str] | None = None) -> None:
        self._typed = typed or sys.stdin
        if not self._typed.isatty():
            raise SettingsError("--chat", "stdin is no terminal", mend="use --ask TEXT")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # A daemon: nothing can end a read of a terminal that nobody types at.
        threading.Thread(target=self._read, daemon=True).start()

    def waiting(self) -> Iterator[str]:
        """The questions typed since the last call."""
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._lines.put(None)  # the end stays the end
                return
            yield line

    def rest(self) -> Iterator[str]:
        """Every question until the user ends the conversation."""
        while (line := self._lines.get()) is not None:
            yield line

    def _read(self) -> None:
        for line in self._typed:
            if line.strip():
                self._lines.put(line.strip())
        self._lines.put(None)
