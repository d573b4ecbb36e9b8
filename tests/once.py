"""What all processes of a run share, made by whichever comes first."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Once:
    """Folders below `root`, made once however many processes ask. Nobody changes them."""

    root: Path

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder `name`, as `make` has filled it."""
        folder, made = self.root / name, self.root / f"{name}.made"
        with self.alone(name):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one whose making failed
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """No other process of the run is in a body of this name."""
        with (self.root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _shared() -> Once:
    """The folders of this run. Its first process makes and removes them, those it starts see where
    they are."""
    if "STC_TESTS_SHARED" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="stc-tests-")
        atexit.register(folder.cleanup)
        os.environ["STC_TESTS_SHARED"] = folder.name
    return Once(Path(os.environ["STC_TESTS_SHARED"]))


SHARED = _shared()
