"""The streams a command writes to: stderr never fails, and stdout says so itself when it does."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

STDOUT: Final = "stdout"
"""What an OSError of standard output has as its file's name."""


class _Descriptor(io.FileIO):
    """A descriptor that is written to until all is written, also when it is a pipe that is full
    and does not block (another program that holds it may have made it so)."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def _put(self, content: bytes) -> int:
        while (written := super().write(content)) is None:
            select.select([], [self], [])
        return written


class _Diagnostics(_Descriptor):
    """Standard error. What cannot be written goes nowhere: the disk is full, the reader or the
    terminal gone, and it is no result."""

    def write(self, content: bytes) -> int:  # type: ignore[override]
        try:
            return self._put(content)
        except OSError:
            return len(content)


class _Results(_Descriptor):
    """Standard output. Its first failure is raised, by every write from then on.

    failure: that failure. lasting: writes go nowhere from then on instead.
    """

    failure: OSError | None = None
    lasting = False

    def write(self, content: bytes) -> int:  # type: ignore[override]
        if self.failure is None:
            try:
                return self._put(content)
            except OSError as failure:
                failure.filename = STDOUT
                self.failure = failure
        if not self.lasting:
            raise self.failure
        return len(content)


@contextmanager
def sound_streams() -> Iterator[None]:
    """In the body `sys.stderr` never raises, and what `sys.stdout` raises has STDOUT as its name.

    One that was closed before the program began is there again and leads nowhere, for the first
    file that is opened would take its place otherwise, and the system's libraries write there.
    Streams that are not the process's own, such as those of a test, stay as they are.
    """
    _occupy()
    before = (sys.stdout, sys.stderr)
    results, diagnostics = _Results(1), _Diagnostics(2)
    try:
        if before[0] is not None:
            before[0].flush()
        sys.stdout = _over(results, before[0])
        sys.stderr = _over(diagnostics, before[1])
        yield
    finally:
        # What is still held goes out if it can; that it could not was told.
        results.lasting = True
        if (held := sys.stdout) is not None:
            held.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def stdout_outlived() -> Iterator[None]:
    """What the body writes to stdout goes nowhere once that fails; the end of the body raises it.

    For a body that writes files as well: they are kept.
    """
    results = _results()
    if results is None:
        yield
        return
    results.lasting = True
    stdout = sys.stdout
    try:
        yield
        stdout.flush()
    finally:
        results.lasting = False
    if results.failure is not None:
        raise results.failure


def _results() -> _Results | None:
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", None)
    return raw if isinstance(raw, _Results) else None


def _occupy() -> None:
    """Descriptors 0 to 2 are open; writing to a stdout that was not raises as it did."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest that is free, which is this one


def _over(raw: _Descriptor, before: TextIO | None) -> TextIO:
    """`raw` in place of `before`, or `before` when that is something else."""
    encoding, at_once = "utf-8", True
    if before is not None:
        if not isinstance(before, io.TextIOWrapper):
            return before
        if _number(before) != raw.fileno():
            before.reconfigure(errors="backslashreplace")
            return before
        encoding, at_once = before.encoding, before.line_buffering or before.write_through
    # A table or an answer that the encoding lacks letters for is no reason to fail.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=at_once
    )


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except OSError:  # a stream in memory
        return None
