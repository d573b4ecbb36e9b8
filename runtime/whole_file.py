"""A file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the body ends, and vanishes when it raises.

    Until then whatever stood at `path` stays untouched. A link is followed; a device or pipe
    (`/dev/null`) is written straight through, as it cannot be replaced.

    Raises OSError when it cannot be written: before the body for a missing or read-only folder,
    after it when the last bytes do not fit.
    """
    target = path.resolve()
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder", str(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
