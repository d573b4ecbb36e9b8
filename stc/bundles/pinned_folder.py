"""A directory held open, so that another one may take its name."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path


class PinnedFolder:
    """The directory that stands at `name` now, for as long as this lives.

    It is held under a shared lock, which stc's writer waits for before it deletes a bundle that it
    replaced. One descriptor. Raises BlockingIOError when the writer is deleting it, else OSError.
    """

    def __init__(self, name: Path) -> None:
        self._name = name.absolute()
        self._descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        # Some network file systems lock no directories: then a writer may delete it meanwhile, and
        # whoever reads it is told that it was replaced.
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise

    @property
    def path(self) -> Path:
        """A path to the directory itself, whatever it is called, for child processes too."""
        if not Path("/proc/self/fd").exists():
            return self._name
        # Not os.getpid(): /proc may count processes from outside a container.
        return Path("/proc", Path("/proc/self").readlink(), "fd", str(self._descriptor))

    def stands(self) -> bool:
        """Whether the directory still stands at its name."""
        try:
            return os.path.samestat(self._name.stat(), os.fstat(self._descriptor))
        except OSError:
            return False
