"""Whether an error is a stop (Ctrl-C, SIGTERM, SIGHUP) that a library made an error of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stc.shell.streams import STDOUT

raised: list[int] = []
"""Signals that raised KeyboardInterrupt in a command, and were not handled since."""


def stop_handled() -> None:
    """Who caught a KeyboardInterrupt goes on: an error that follows is none of the stop's."""
    raised.clear()


@contextmanager
def unmasked_stops() -> Iterator[None]:
    """A stop in the body is a KeyboardInterrupt, also where a library made an error of it.

    For who tells errors and goes on, which a stop must not. So is any error that follows a stop
    which was not handled.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StopIteration) or not is_stop(error):
            raise
        raise KeyboardInterrupt from error


def is_stop(error: BaseException) -> bool:
    """Whether `error` is a KeyboardInterrupt or follows one that was not handled, as what
    libraries make of it. That of stdout is no such."""
    return isinstance(error, KeyboardInterrupt) or bool(raised and not of_stdout(error))


def of_stdout(error: BaseException) -> bool:
    """Whether `error` is that stdout cannot be written."""
    return isinstance(error, OSError) and error.filename == STDOUT
