"""A bundle appears whole or not at all.

It is written into `.NAME.stc-partial` beside its place and renamed when it is done. A killed writer
leaves that directory behind, which nobody takes for a bundle and the next writer of NAME clears.

A bundle that stood there changes places with it and is deleted then: its own files alone, and not
while somebody has it open. What stays for that reason the next writer of NAME clears.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from stc.bundles.bundle import PARTIAL, REPLACED, moved_aside
from stc.bundles.contents import LOCK, BundleContents
from stc.errors import BundleError
from stc.manifest import MANIFEST, Manifest

_LOCKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF})
"""What a file system says that locks no directories."""

ONLY_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What only a file being written can raise."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RANDOM = 8
"""Letters that mkdtemp puts behind a prefix."""
_CANNOT = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""What a kernel or a file system says that cannot exchange."""


class BundleWriter:
    """Writes the bundle at `path`; a context manager.

    root: where to write files, until the end of the body; then they stand at `path`.

    A body that raises, KeyboardInterrupt included, leaves nothing behind and whatever stood at
    `path` untouched. With `force` a bundle at `path` is replaced, with files that are not its own
    beside them it never is.

    Raises BundleError when `path` is taken or being written by another process, and for every
    OSError that says that it cannot be written: no space, no permission, read-only.
    """

    def __init__(self, path: Path | str, *, force: bool = False) -> None:
        self._name = path
        # A link's target is replaced, not the link; the partial directory must stand beside it.
        self._target = Path(os.path.realpath(path))
        self._force = force
        self._finished = False
        self.root = self._target.with_name(f".{self._target.name}{PARTIAL}")

    def __enter__(self) -> BundleWriter:
        with ExitStack() as undo:
            try:
                self._refuse_taken()
                self.root.parent.mkdir(parents=True, exist_ok=True)
                self._lock = undo.enter_context(self._locked())
                undo.callback(self._discard)
                self._clear_leftovers()
                self._refuse_taken()
            except OSError as error:
                raise self._unwritable(error) from error
            self._undo = undo.pop_all()
        return self

    def refuse_taken(self) -> None:
        """Raise BundleError when something stands at `path` that must stay, or nothing can be
        written there; nothing is changed.

        For who has much to do before the first file is written, which looks again.
        """
        try:
            self._refuse_taken()
            above = next(folder for folder in self.root.parents if folder.exists())
            # What may be written only trying tells. The name is as long as that of `root`.
            Path(mkdtemp(prefix=self.root.name[:-_RANDOM], dir=above)).rmdir()
        except OSError as error:
            raise self._unwritable(error) from error

    def finish(self, manifest: Manifest) -> None:
        """The manifest stands beside the files, the last one written."""
        text = manifest.model_dump_json(indent=2) + "\n"
        (self.root / MANIFEST).write_text(text, encoding="utf-8")
        self._finished = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        contents = BundleContents(target)
        foreign = contents.foreign()
        if not self._force:
            is_bundle = contents.listed and foreign is None
            force = "replace it with --force, or " if is_bundle else ""
            fix = f"{force}choose another --output"
            raise BundleError(self._name, "exists and is not empty", "", fix)
        if not contents.listed:
            raise BundleError(
                self._name,
                "holds files and is no bundle, --force would delete them",
                f"a directory whose {MANIFEST} lists graphs, or an empty one",
                "choose another --output, or empty it yourself",
            )
        if foreign is not None:
            raise BundleError(
                self._name,
                f"holds {foreign}, which is not the bundle's; --force would delete it",
                f"what its {MANIFEST} lists, and engines",
                "move it away, or choose another --output",
            )

    def _locked(self) -> IO[bytes]:
        """The open, locked lock file of the partial directory, which exists afterwards.

        The system releases the lock of a process that dies, however it dies.
        """
        while True:
            self.root.mkdir(exist_ok=True)
            self._refuse_strange()
            try:
                lock = os.fdopen(os.open(self.root / LOCK, _LOCKING, 0o666), "wb")
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

    def _refuse_strange(self) -> None:
        """Raise BundleError when the partial directory is none that a writer left."""
        left = not any(self.root.iterdir()) or (self.root / LOCK).exists()
        if self.root.is_symlink() or not left:
            got = f"{self.root} is in the way and nothing an export left"
            raise BundleError(self._name, got, "", "move it away, or choose another --output")

    def _is_lock(self, lock: IO[bytes], folder: Path | None = None) -> bool:
        """Whether `lock` is the lock file in `folder`, or in the partial directory."""
        try:
            found = ((folder or self.root) / LOCK).stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(lock.fileno()), found)

    def _discard(self) -> None:
        """The partial directory is gone, unless it became the bundle and the name is free or taken.

        What cannot be removed is the next writer's leftover; the error that brought us here is the
        one to tell.
        """
        if self._is_lock(self._lock):
            with suppress(OSError):
                self._empty()
                shutil.rmtree(self.root)

    def _empty(self) -> None:
        """The partial directory holds its lock alone, by which the next writer knows it."""
        for leftover in self.root.iterdir():
            if leftover.name == LOCK:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _clear_leftovers(self) -> None:
        """What killed writers left is gone; a bundle they had moved aside is back in place."""
        self._empty()
        aside = moved_aside(self._target)
        if aside and not self._target.exists():
            aside[max(aside)].rename(self._target)
        self._clear_aside()

    def _clear_aside(self) -> None:
        """Bundles that were moved aside are gone, but for those that somebody has open.

        Files that are not theirs stay. Raises OSError.
        """
        for aside in moved_aside(self._target).values():
            if aside.is_symlink() or not aside.is_dir():
                continue
            with ExitStack() as held:
                if all(_held(place, held) for place in (aside, aside / LOCK) if place.exists()):
                    BundleContents(aside).remove()

    def _publish(self) -> None:
        """The partial directory stands at the target, on disk."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                _sync(Path(folder, name))
            _sync(Path(folder))
        self._refuse_taken()
        if self._target.exists():
            self._replace()
        else:
            self.root.rename(self._target)
        (self._target / LOCK).unlink()
        _sync(self._target.parent)
        try:
            self._clear_aside()
        except OSError as error:
            raise BundleError(
                self._name,
                f"is written, but what it replaced cannot be deleted ({error.strerror})",
                "",
                f"delete {error.filename or 'it'} yourself",
            ) from error

    def _replace(self) -> None:
        """The partial directory stands at the target, and what stood there is moved aside."""
        number = max(moved_aside(self._target), default=-1) + 1
        name = f".{self._target.name}{REPLACED}" + (f"-{number}" if number else "")
        aside = self._target.with_name(name)
        try:
            # First, so that nobody takes the old bundle for a partial one.
            self.root.rename(aside)
            if exchange(aside, self._target):
                return
            aside.rename(self.root)
            self._target.rename(aside)
            self.root.rename(self._target)
        except BaseException:
            if self._is_lock(self._lock, aside):
                aside.rename(self.root)
            elif aside.exists() and not self._target.exists():
                aside.rename(self._target)
            raise

    def _is_ours(self, error: OSError) -> bool:
        """Whether the body's `error` is about writing the bundle, not about reading its sources."""
        inside = str(error.filename or "").startswith(str(self.root))
        return inside or error.errno in ONLY_WRITING

    def _unwritable(self, error: OSError) -> BundleError:
        reason = error.strerror or str(error)
        fix = "choose another --output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = f"free space there, or {fix}"
        return BundleError(self._name, f"cannot be written ({reason})", "", fix)


def _held(place: Path, held: ExitStack) -> bool:
    """Whether nobody else holds a lock on `place`; until `held` ends nobody can take one."""
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: Path, other: Path) -> bool:
    """Each stands where the other stood; nobody saw either place empty. False: nothing was done.

    False says that the C library, the kernel or the file system cannot. Raises OSError.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))
