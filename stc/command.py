"""What all commands share: one line for a user's mistake, exit 2, no traceback.

Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted before any result,
141 the reader of stdout or stderr went away.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich import console

from stc.errors import StcError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}; see {self.prog} --help\n")


class Console(console.Console):
    """Rich's console, but a reader that went away is for `run` to tell; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def run(body: Callable[[], int]) -> int:
    """The exit code of `body`, with what a user can mend told in one line on stderr."""
    try:
        try:
            return body()
        finally:
            # Here, and not when the interpreter ends, where what it raises cannot be caught.
            if sys.stdout:
                sys.stdout.flush()
    except StcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _give_up_stdout()
        return 141
    except OSError as error:
        _give_up_stdout()
        place = error.filename or "a file or stdout"
        print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
        return 2


def _give_up_stdout() -> None:
    """What stdout still holds goes nowhere if it cannot be written, now and at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the body to end, and raises KeyboardInterrupt then.

    For the main thread, the only one that Ctrl-C interrupts.
    """
    pressed: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt
