"""Errors a user can fix.

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

from stc.shell.printable import one_line

LONGEST_PART = 600
"""Characters of each part of an error's line."""


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
