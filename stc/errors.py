"""Errors a user can fix, and foreign text made fit for a terminal.

    StcError
    |-- SettingsError     a flag or field outside its range
    |-- CheckpointError   the Hugging Face checkpoint cannot be used
    |-- ExportError       a graph could not be written or does not equal PyTorch
    |-- BundleError       a bundle is missing, altered, truncated or too new
    |-- EngineError       a graph could not be loaded or run
    |   |-- NonFiniteError   a graph produced NaN or infinity
    |   `-- DeviceError      a call of the GPU's runtime failed
    |-- VideoError        the video or camera cannot be read or written
    `-- LanguageError     a question cannot be answered, or tokens cannot be remembered

Every message names the object, what was got, what was expected and how to fix it, in one
printable line that is never endless.
Commands print it after `error: ` and exit 2; anything else that escapes is a bug.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_PART = 600
"""Characters of each part of an error's line."""
LONGEST_LINE = 2_000
"""Characters of a line about something that went wrong; what is in the middle of longer ones is
left out."""

_ELLIPSIS = " ... "
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of controls, of bytes that are no text, and of characters that end a line."""
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What follows them looks as if it stood elsewhere. Joiners and marks stay: scripts need them."""


def printable(text: str) -> str:
    """`text` with control characters, but newlines and tabs, as Python would write them (`\\x1b`).

    Those are the characters that move a terminal's cursor, colour it, ring it, reorder or end a
    line, and stray surrogates.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text)


def one_line(text: str, most: int = LONGEST_LINE) -> str:
    """`text` as one printable line of at most `most` characters, its start and end kept.

    Its own newlines and tabs show as `\\n` and `\\t`, so that no name makes a line of its own.
    """
    if len(text) > 8 * most:
        # Nobody waits for a hundred megabytes to be looked at letter by letter.
        text = text[: 4 * most] + _ELLIPSIS + text[-4 * most :]
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(line) <= most:
        return line
    kept = most - len(_ELLIPSIS)
    return line[: kept - kept // 2] + _ELLIPSIS + line[len(line) - kept // 2 :]


def _shown(letter: str) -> str:
    if letter in "\n\t":
        return letter
    if letter in _REORDERING or unicodedata.category(letter) in _HIDDEN:
        return letter.encode("unicode_escape").decode("ascii")
    return letter


class StcError(Exception):
    """A mistake a user can fix.

    `subject` is the object at fault; `got`, `expected` and `fix` complete the line
    `SUBJECT: GOT, expected EXPECTED; FIX`. The last two may be empty.
    """

    def __init__(self, subject: object, got: str, expected: str = "", fix: str = "") -> None:
        self.subject = subject
        self.got = got
        self.expected = expected
        self.fix = fix
        # Each part on its own, so that no endless name hides what is wrong with it.
        line = f"{_short(str(subject))}: {_short(got)}"
        if expected:
            line += f", expected {_short(expected)}"
        if fix:
            line += f"; {_short(fix)}"
        super().__init__(one_line(line))


def _short(part: str) -> str:
    return one_line(" ".join(part.split()), LONGEST_PART)


class SettingsError(StcError):
    """A flag or field is outside its range."""


class CheckpointError(StcError):
    """The Hugging Face checkpoint cannot be used."""


class ExportError(StcError):
    """A graph could not be written, or does not equal PyTorch."""


class BundleError(StcError):
    """A bundle is missing, altered, truncated or too new."""


class EngineError(StcError):
    """A graph could not be loaded or run."""


class NonFiniteError(EngineError):
    """A graph produced NaN or infinity."""


class DeviceError(EngineError):
    """A call of the GPU's runtime failed."""


class VideoError(StcError):
    """The video or camera cannot be read or written."""


class LanguageError(StcError):
    """A question cannot be answered, or tokens cannot be remembered."""


@contextmanager
def guarded(
    subject: object, got: str, fix: str = "", error: type[StcError] = LanguageError
) -> Iterator[None]:
    """What other people's code raises in the body becomes an `error`: `SUBJECT: GOT (CAUSE); FIX`.

    Panics of Rust libraries are among it, which are no Exception. What ends a program
    (KeyboardInterrupt, SystemExit) and errors that are told already pass through.
    """
    try:
        yield
    except (StcError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:
        raise error(subject, f"{got} ({first_line(cause)})", fix=fix) from cause


def first_line(error: BaseException) -> str:
    """The first line of what a foreign `error` says, without a full stop; its kind where that is
    nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
