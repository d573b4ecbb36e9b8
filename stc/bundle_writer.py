"""A bundle appears whole or not at all.

It is written into `.NAME.stc-partial` beside its place and renamed when it is done. A killed writer
leaves that directory behind, which nobody takes for a bundle and the next writer of NAME clears.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

from stc.bundle import PARTIAL
from stc.errors import BundleError
from stc.manifest import GRAPHS, MANIFEST, Manifest

REPLACED = ".stc-replaced"
LOCK = ".lock"

ONLY_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What only a file being written can raise."""


class BundleWriter:
    """Writes the bundle at `path`; a context manager.

    root: where to write files, until the end of the body; then they stand at `path`.

    A body that raises, KeyboardInterrupt included, leaves nothing behind and whatever stood at
    `path` untouched. With `force` a bundle at `path` is replaced, other files never are.

    Raises BundleError when `path` is taken or being written by another process, and for every
    OSError that says that it cannot be written: no space, no permission, read-only.
    """

    def __init__(self, path: Path | str, *, force: bool = False) -> None:
        self._name = path
        # A link's target is replaced, not the link; the partial directory must stand beside it.
        self._target = Path(os.path.realpath(path))
        self._force = force
        self._finished = False
        self._aside = self._target.with_name(f".{self._target.name}{REPLACED}")
        self.root = self._target.with_name(f".{self._target.name}{PARTIAL}")

    def __enter__(self) -> BundleWriter:
        with ExitStack() as undo:
            try:
                self._refuse_taken()
                self.root.parent.mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context(self._locked())
                # What cannot be removed is the next writer's leftover; the error that brought us
                # here is the one to tell.
                undo.callback(shutil.rmtree, self.root, ignore_errors=True)
                self._clear_leftovers()
                self._refuse_taken()
            except OSError as error:
                raise self._unwritable(error) from error
            self._undo = undo.pop_all()
        return self

    def finish(self, manifest: Manifest) -> None:
        """The manifest stands beside the files, the last one written."""
        text = manifest.model_dump_json(indent=2) + "\n"
        (self.root / MANIFEST).write_text(text, encoding="utf-8")
        self._finished = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._undo:
            if isinstance(error, OSError) and self._is_ours(error):
                raise self._unwritable(error) from error
            if error is not None:
                return
            if not self._finished:
                raise RuntimeError("the body ended without finish()")
            try:
                self._publish()
            except OSError as failure:
                raise self._unwritable(failure) from failure

    def _refuse_taken(self) -> None:
        """Raise BundleError when something stands at the target that must stay."""
        target = self._target
        if target.is_mount():
            got = "is a mount point, which cannot be replaced as a whole"
            raise BundleError(self._name, got, "", f"choose a directory in it: {target}/bundle")
        if not target.exists():
            above = next(folder for folder in target.parents if folder.exists())
            if not above.is_dir():
                raise BundleError(self._name, f"{above} is a file", "", "choose another --output")
            return
        if not target.is_dir():
            raise BundleError(self._name, "is a file", "", "choose another --output")
        if not any(target.iterdir()):
            return
        if not self._force:
            raise BundleError(
                self._name,
                "exists and is not empty",
                "",
                "replace it with --force, or choose another --output",
            )
        if not ((target / MANIFEST).is_file() and (target / GRAPHS).is_dir()):
            raise BundleError(
                self._name,
                "holds files and is no bundle, --force would delete them",
                f"a directory with {MANIFEST} and {GRAPHS}/, or an empty one",
                "choose another --output, or empty it yourself",
            )

    def _locked(self) -> IO[bytes]:
        """The open, locked lock file of the partial directory, which exists afterwards.

        The system releases the lock of a process that dies, however it dies.
        """
        while True:
            self.root.mkdir(exist_ok=True)
            try:
                lock = (self.root / LOCK).open("wb")
            except FileNotFoundError:
                continue  # its owner removed the directory just now
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its owner may have renamed the directory between open and flock.
                if self._is_lock(lock):
                    return lock
            except BlockingIOError as error:
                lock.close()
                raise BundleError(
                    self._name,
                    "another stc-export is writing it",
                    "",
                    "wait for it, or choose another --output",
                ) from error
            except BaseException:
                lock.close()
                raise
            lock.close()

    def _is_lock(self, lock: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(lock.fileno()), (self.root / LOCK).stat())
        except FileNotFoundError:
            return False

    def _clear_leftovers(self) -> None:
        """What killed writers left is gone; a bundle they had moved aside is back in place."""
        for leftover in self.root.iterdir():
            if leftover.name == LOCK:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        self._restore()
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def _restore(self) -> None:
        """A bundle that was moved aside is back in place if nothing has taken it."""
        if self._aside.exists() and not self._target.exists():
            self._aside.rename(self._target)

    def _publish(self) -> None:
        """The partial directory stands at the target, on disk."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        self._refuse_taken()
        try:
            if self._target.exists():
                self._target.rename(self._aside)
            self.root.rename(self._target)
        except BaseException:
            self._restore()
            raise
        (self._target / LOCK).unlink()
        _sync(self._target.parent)
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def _is_ours(self, error: OSError) -> bool:
        """Whether the body's `error` is about writing the bundle, not about reading its sources."""
        inside = str(error.filename or "").startswith(str(self.root))
        return inside or error.errno in ONLY_WRITING

    def _unwritable(self, error: OSError) -> BundleError:
        reason = error.strerror or str(error)
        mend = "choose another --output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = f"free space there, or {mend}"
        return BundleError(self._name, f"cannot be written ({reason})", "", mend)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
