"""Other people's code, called so that whatever it raises is one LanguageError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stc.errors import LanguageError, StcError

LONGEST_CAUSE = 200
"""Characters of a foreign message that are told."""


@contextmanager
def guarded(subject: object, got: str, fix: str = "") -> Iterator[None]:
    """What is raised inside becomes `SUBJECT: GOT (CAUSE); FIX`.

    Panics of Rust libraries are among it, which are no Exception. What ends a program
    (KeyboardInterrupt, SystemExit) and errors that are told already pass through.
    """
    try:
        yield
    except (StcError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        cause = printable(str(error) or type(error).__name__)
        raise LanguageError(subject, f"{got} ({cause})", fix=fix) from error


def printable(text: str) -> str:
    """The first line of `text`, at most LONGEST_CAUSE characters, none of them a control code."""
    line = next(iter(text.splitlines()), "")
    if len(line) > LONGEST_CAUSE:
        line = line[:LONGEST_CAUSE] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in line)
