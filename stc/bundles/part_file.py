"""A file being written stands beside its place, as `.NAME.TOKEN.stc-part`, until it is whole.

A killed writer leaves it behind; whoever writes into the folder next clears it away. It tells those
still being written by their lock, which the system releases when a process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PART = ".stc-part"
_MAX_OF_A_NAME = 200
"""Bytes of 255, so that a part's own name is no longer than file systems take."""
_NAME = re.compile(rf"\.(.+)\.[0-9a-f]{{8}}{re.escape(PART)}")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the body ends, and vanishes when it raises.

    Until then whatever stood at `path` stays untouched. It is on disk before it becomes `path`.

    Raises OSError when it cannot be written.
    """
    _sweep(path)
    part, file = _new_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Before it is closed: without its lock it would be a leftover.
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(name: str) -> str | None:
    """The name of the file of which a file called `name` is a part; None when it is no part."""
    part = _NAME.fullmatch(name)
    return part[1] if part else None


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    """A new part of `path`, locked."""
    name = os.fsdecode(os.fsencode(path.name)[:_MAX_OF_A_NAME])
    while True:
        part = path.with_name(f".{name}.{secrets.token_hex(4)}{PART}")
        file = part.open("xb")
        _lock(file)
        # A sweep may have come between the two.
        if part.exists():
            return part, file
        file.close()


def _sweep(path: Path) -> None:
    """Parts beside `path` that this user's processes left when they died are gone.

    Nothing else is touched: no part being written, no other user's, no folder, no link.
    """
    # Sweeping is a courtesy: what it may not list, open or remove is another one's to clear.
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if _NAME.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_left(Path(entry.path))


def _remove_if_left(part: Path) -> None:
    status = part.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return
    with part.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _lock(file: BinaryIO) -> None:
    # Where a file system has no locks, nothing there is ever taken for a leftover either.
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
