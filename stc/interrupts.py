"""What asks a command to end: Ctrl-C, SIGTERM of systemd, docker and timeout, SIGHUP of a terminal
that is closed. Each is a KeyboardInterrupt, and none is lost.
"""

from __future__ import annotations

import _thread
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a command to end."""
INTERRUPTED = 130
"""Exit code of a command that was interrupted before any result, as shells have it."""

_AGAIN_S = 0.02
"""After so long a stop that came at a bad moment comes again."""
_IMPORTING = "<frozen importlib."


@contextmanager
def stoppable(within: CodeType) -> Iterator[None]:
    """STOPS raise KeyboardInterrupt in the body, unless they are ignored (nohup).

    One that comes while a module is imported, by a function that `within` calls, comes again when
    that is done: a module of C makes an ImportError of it, or swallows it, and one of Python may
    be left half made. So does one that was raised where nothing can be, as in a destructor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        leave_terminal(number)
        if _is_importing(frame, within):
            _send_again(number)
            return
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
        leave_terminal(number)
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


def leave_terminal(number: int) -> None:
    """What is said after SIGHUP goes nowhere: the terminal is gone, and a write would fail."""
    for output in (1, 2):
        if number == signal.SIGHUP and stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def _is_importing(frame: FrameType | None, within: CodeType) -> bool:
    """Whether an import is under way below the call of `within` that led to `frame`."""
    while frame is not None and frame.f_code is not within:
        if frame.f_code.co_filename.startswith(_IMPORTING):
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
