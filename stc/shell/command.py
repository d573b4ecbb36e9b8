"""What all commands share: one line for a user's mistake, exit 2, no traceback.

Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted before any result,
141 the reader of stdout went away. SIGTERM, which systemd, docker and timeout send, and SIGHUP,
which a terminal sends that is closed, interrupt as Ctrl-C does. What cannot be written to stderr
changes nothing.
"""

from __future__ import annotations

import _thread
import argparse
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import CodeType, FrameType
from typing import Any, NoReturn

from rich import console

from stc.errors import StcError, one_line, printable
from stc.shell.stops import is_stop, of_stdout, raised, stop_handled, unmasked_stops
from stc.shell.streams import sound_streams, stdout_outlived

__all__ = [
    "STOPS",
    "Console",
    "Parser",
    "run",
    "stdout_outlived",
    "stop_handled",
    "tell",
    "uninterrupted",
    "unmasked_stops",
]

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a command to end."""
INTERRUPTED = 130
"""Exit code of a command that was interrupted before any result, as shells have it."""

_AGAIN_S = 0.02
"""After so long a stop that came at a bad moment comes again."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose flags are written in full: what a
    script abbreviates would mean something else once there is another flag.

    A value is of its flag's type, and not empty, as that of a variable nobody set. It may begin
    with a minus and a digit, as `-5,0,9,9`, which no flag does.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        # Python before 3.14 takes whole numbers alone for values.
        self._negative_number_matcher = re.compile(r"-\.?\d")

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
    """The exit code of `body`, with what a user can fix told in one line on stderr."""
    try:
        with sound_streams(), _stoppable(run.__code__):
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
    except BaseException as error:
        told = _told(error)
        if told is None:
            raise
        return told


def _told(error: BaseException) -> int | None:
    """The exit code of a command that ended with `error`, which is told; None for a bug's."""
    if is_stop(error):
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, StcError):
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not isinstance(error, OSError):
        return None
    before = error.__context__  # what ended the body; then stdout failed too
    if isinstance(before, StcError) and not raised:
        print(f"error: {before}", file=sys.stderr)
    if of_stdout(error) and isinstance(error, BrokenPipeError):
        return 141
    reason = error.strerror or str(error)
    what = f"cannot be written ({reason})" if of_stdout(error) else reason
    subject = error.filename or "a file"
    print(f"error: {one_line(f'{subject}: {what}')}", file=sys.stderr)
    return 2


@contextmanager
def _stoppable(within: CodeType) -> Iterator[None]:
    """STOPS raise KeyboardInterrupt in the body, unless they are ignored (nohup).

    One that comes while a module of C is imported, by what `within` calls, comes again when that
    is done: such a module makes an ImportError of it, or swallows it. So does one that was raised
    where nothing can be raised, as in a destructor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised.clear()

    def stop(number: int, frame: FrameType | None) -> None:
        _leave_terminal(number)
        if _is_extension_loading(frame, within):
            _send_again(number)
            return
        raised.append(number)
        raise KeyboardInterrupt

    def unraisable(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            _send_again(signal.SIGINT)
        else:
            told(what)

    previous = {}
    told, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        for number in STOPS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
        yield
    finally:
        for stopping, handler in previous.items():
            signal.signal(stopping, handler)
        sys.unraisablehook = told


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


def _leave_terminal(number: int) -> None:
    """What is said after SIGHUP goes nowhere: the terminal is gone, and a write would fail."""
    for output in (1, 2):
        if number == signal.SIGHUP and stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def _is_extension_loading(frame: FrameType | None, within: CodeType) -> bool:
    """Whether a module of C is being imported below the call of `within` that led to `frame`."""
    while frame is not None and frame.f_code is not within:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    """Signal `number` comes to this process again in a moment."""

    def send() -> None:
        time.sleep(_AGAIN_S)
        os.kill(os.getpid(), number)

    # No threading.Thread: the program may have been stopped while it held a lock of that module.
    _thread.start_new_thread(send, ())
