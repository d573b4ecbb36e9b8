"""What all commands share: one line for a user's mistake, exit 2, no traceback.

Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted before any result,
141 the reader of stdout or stderr went away. SIGTERM, which systemd, docker and timeout send, and
SIGHUP, which a terminal sends that is closed, interrupt as Ctrl-C does.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rich import console

from stc.errors import StcError

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a command to end."""


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A table or an answer that stdout's encoding lacks letters for is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with _stoppable():
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
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt in the body, unless they are ignored (nohup)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> NoReturn:
        _leave_terminal(number)
        raise KeyboardInterrupt

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
        yield
    finally:
        for stopping, handler in previous.items():
            signal.signal(stopping, handler)


def _leave_terminal(number: int) -> None:
    """What is said after SIGHUP goes nowhere: the terminal is gone, and a write would fail."""
    for output in (1, 2):
        if number == signal.SIGHUP and stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, and what else interrupts, waits for the body to end, and interrupts then.

    Other threads than the main one are never interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    handlers = {stop: handler for stop in STOPS if callable(handler := signal.getsignal(stop))}

    def catch(number: int, _: FrameType | None) -> None:
        _leave_terminal(number)
        caught.append(number)

    try:
        for stop in handlers:
            signal.signal(stop, catch)
        yield
    finally:
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
    for number in caught:
        handlers[signal.Signals(number)](number, None)
