"""What all commands share: one line for a user's mistake, exit 2, no traceback.

Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted before any result,
141 the reader of stdout went away. SIGTERM, which systemd, docker and timeout send, and SIGHUP,
which a terminal sends that is closed, interrupt as Ctrl-C does. What cannot be written to stderr
changes nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich import console

from stc.errors import StcError
from stc.interrupts import INTERRUPTED, STOPS, stoppable, uninterrupted
from stc.printable import one_line, printable
from stc.streams import STDOUT, sound_streams, stdout_outlived

__all__ = ["STOPS", "Console", "Parser", "run", "stdout_outlived", "tell", "uninterrupted"]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose flags are written in full: what a
    script abbreviates would mean something else once there is another flag.

    A value is of its flag's type, and not empty, as that of a variable nobody set.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Python before 3.13 takes "--" out of `--flag=--` and hands on an empty list.
        for text in arg_strings:
            if not text or "\0" in text or (text == "--" and action.option_strings):
                raise argparse.ArgumentError(action, f"got {text!r}, expected a value")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        told = re.sub(r"^argument (?=-)", "", " ".join(message.split()))
        self.exit(2, f"error: {one_line(told)}; see {self.prog} --help\n")


class Console(console.Console):
    """Rich's console for text that others wrote: no control character of it gets through."""

    def print(self, *objects: Any, **options: Any) -> None:
        shown = [printable(one) if isinstance(one, str) else one for one in objects]
        super().print(*shown, **options)

    def say(self, line: str) -> None:
        """`line` as it is, but printable and not endless."""
        self.print(one_line(line), markup=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        raise


def tell(line: str) -> None:
    """`line` stands on stdout, printable and not endless."""
    print(one_line(line))


def run(body: Callable[[], int]) -> int:
    """The exit code of `body`, with what a user can mend told in one line on stderr."""
    try:
        with sound_streams(), stoppable(run.__code__):
            return _outcome(body)
    except KeyboardInterrupt:  # another one, while the first was told
        return INTERRUPTED


def _outcome(body: Callable[[], int]) -> int:
    try:
        try:
            return body()
        finally:
            # Here, and not when the interpreter ends, where what it raises cannot be caught.
            sys.stdout.flush()
    except StcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.filename == STDOUT and isinstance(error, BrokenPipeError):
            return 141
        reason = error.strerror or str(error)
        what = f"cannot be written ({reason})" if error.filename == STDOUT else reason
        subject = error.filename or "a file"
        print(f"error: {one_line(f'{subject}: {what}')}", file=sys.stderr)
        return 2
