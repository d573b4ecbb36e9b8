"""Questions typed at a terminal while a stream runs."""

from __future__ import annotations

import io
import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO

from stc.errors import SettingsError

HINT = "ask a question and press Enter; Ctrl-D ends the questions, Ctrl-C the stream"
SIGN = "? "
"""Shown where a question can be typed."""


class Chat:
    """The lines a user types, without waiting for them; the sign to type goes to `shown`, stderr.

    Raises SettingsError when `typed`, stdin, is not a terminal.
    """

    def __init__(self, typed: IO[str] | None = None, shown: IO[str] | None = None) -> None:
        given: IO[str] | None = typed or sys.stdin  # None when it was closed
        if given is None or not given.isatty():
            raise SettingsError("--chat", "stdin is no terminal", fix="use --ask TEXT")
        if isinstance(given, io.TextIOWrapper):
            # A letter in another encoding than the terminal's is no reason to stop listening.
            given.reconfigure(errors="replace")
        self._typed = given
        self._shown = shown or sys.stderr
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        # A daemon: nothing can end a read of a terminal that nobody types at.
        threading.Thread(target=self._read, daemon=True).start()

    def invite(self) -> None:
        """The sign to type is shown, unless the user has ended the conversation."""
        if not self._ended:
            self._shown.write(SIGN)
            self._shown.flush()

    def typed(self) -> str | None:
        """The next question that was typed; None when there is none yet, or none will follow."""
        return None if self._lines.empty() else self._next()

    def rest(self) -> Iterator[str]:
        """Every question until the user ends the conversation."""
        while (line := self._next()) is not None:
            yield line

    def _next(self) -> str | None:
        line = self._lines.get()
        if line is None:
            self._ended = True
            self._lines.put(None)  # the end stays the end
        return line

    def _read(self) -> None:
        try:
            for line in self._typed:
                if line.strip():
                    self._lines.put(line.strip())
        except OSError:
            pass  # the terminal is gone, which ends the questions too
        finally:
            self._lines.put(None)
