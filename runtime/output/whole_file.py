"""A file that is there whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stc.bundles.part_file import replacing


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the body ends, and vanishes when it raises.

    Until then whatever stood at `path` stays untouched. A link is followed; a device or pipe
    (`/dev/null`) is written straight through, as it cannot be replaced.

    Raises OSError naming `path` when it cannot be written: before the body for a missing or
    read-only folder, after it when the last bytes do not fit.
    """
    # Not resolve(), for which a loop of links is no OSError before Python 3.13.
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "is a link that leads to itself", str(path))
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder", str(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    with replacing(target) as file:
        yield file
