"""The one door to a bundle's files: those the manifest lists, each as its digest says."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import stat
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from stc.bundles.part_file import replacing
from stc.errors import BundleError
from stc.manifest import FileEntry

CHUNK_BYTES = 1 << 20
MAX_KNOWN_FILES = 1000
"""How many files are remembered as hashed; the one hashed longest ago is forgotten first."""
MAX_KNOWN_BYTES = 4 << 20
RECENT_NS = 3_000_000_000
"""Change times come in steps, of 2 s at most: a change after one so recent may not show."""


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


@dataclass(frozen=True)
class FileIdentity:
    """Which file it is and when it was last touched: while this stays, its bytes do."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileIdentity:
        """That of the file `found` is about."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class KnownHashes:
    """The SHA-256 of files as they were seen, one line each, the last hashed first:

        'PATH' DEVICE INODE SIZE MTIME_NS CTIME_NS SHA256

    The file is `stc/known-hashes` in $XDG_CACHE_HOME or ~/.cache, and may be deleted at any time.
    Only the user may have written it: one that others own or can write is not believed. One that
    is damaged, or cannot be read or written, only costs hashing again. Nothing raises.
    """

    def __init__(self) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not cache.is_absolute():
            with suppress(RuntimeError):  # a user without a home
                cache = Path("~/.cache").expanduser()
        self._file = cache / "stc" / "known-hashes" if cache.is_absolute() else None

    def holds(self, path: Path, identity: FileIdentity, sha256: str) -> bool:
        """Whether the file at the real path `path`, as it is now, was hashed to `sha256`."""
        return _line(path, identity, sha256) in self._lines()

    def remember(self, path: Path, identity: FileIdentity, sha256: str, looked_ns: int) -> None:
        """The file was hashed to `sha256`, after `identity` was looked at.

        looked_ns: the time of that look, since the epoch. A file changed just before is not
        remembered: it may change once more, and look the same.
        """
        if self._file is None or looked_ns - identity.changed_ns <= RECENT_NS:
            return
        others = [line for line in self._lines() if not line.startswith(_start(path))]
        lines = [_line(path, identity, sha256), *others][:MAX_KNOWN_FILES]
        # Remembering is a courtesy: on a full disk, or in another's home, nothing is.
        with suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._file) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(b"\n".join(lines))

    def _lines(self) -> list[bytes]:
        if self._file is None:
            return []
        with suppress(OSError), open(self._file, "rb", opener=_opened) as file:
            found = os.fstat(file.fileno())
            others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not others_write:
                return file.read(MAX_KNOWN_BYTES).splitlines()
        return []


def _start(path: Path) -> bytes:
    return f"{str(path)!a} ".encode()


def _line(path: Path, identity: FileIdentity, sha256: str) -> bytes:
    return _start(path) + " ".join(map(str, (*astuple(identity), sha256))).encode()


def _opened(path: str, flags: int) -> int:
    """No link is followed, and no pipe waited on."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


class BundleFiles:
    """The files `entries` of the bundle in `folder`, which the user knows as `root`.

    Whatever is handed out was compared with its digest; `check_unchanged` says so again after a
    library opened a file by itself. What was hashed once is known from then on, see
    KnownHashes. Raises BundleError, with `fix`.
    """

    def __init__(
        self, root: Path, folder: PinnedFolder, entries: Iterable[FileEntry], fix: str
    ) -> None:
        self._root = root
        self._folder = folder
        # A path may be listed twice; then it must be right twice, see `check_places`.
        self._listed = list(dict.fromkeys(entries))
        self._entries = {entry.path: entry for entry in self._listed}
        self._fix = fix
        self._verified: dict[str, FileIdentity] = {}
        self._known = KnownHashes()

    @property
    def folder(self) -> Path:
        """The bundle's directory itself, whatever it is called now (`PinnedFolder`)."""
        return self._folder.path

    @property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of every listed file, by its path."""
        return {path: entry.size_bytes for path, entry in self._entries.items()}

    def check_places(self) -> None:
        """Every listed file is there, with its size; what it holds is for those who use it."""
        for entry in self._listed:
            if entry != self._entries[entry.path]:
                got = "is listed twice, with different digests"
                raise BundleError(self._root / entry.path, got, "", self._fix)
            self._check_place(entry)

    def mismatches(self) -> Iterator[BundleError]:
        """What is wrong with each listed file that is not as its digest says.

        All are hashed, whatever is known of them: about a second per GB.
        """
        for entry in self._listed:
            try:
                self._check(entry, anew=True)
            except BundleError as error:
                yield error

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`."""
        entry = self._entry(path)
        self._check_place(entry)
        with self._told(path), self.place(path).open("rb") as stream:
            identity = FileIdentity.of(os.fstat(stream.fileno()))
            # One more than it should have says that it grew.
            content = stream.read(entry.size_bytes + 1)
        self._compare(entry, hashlib.sha256(content).hexdigest())
        self._verified[path] = identity
        return content

    def place(self, path: str) -> Path:
        """Where a library may open the file `path`; `check_unchanged` is to follow."""
        return self._folder.path / self._entry(path).path

    def named(self, text: str) -> str:
        """What a library says, with the bundle's directory called as the user knows it."""
        return text.replace(str(self.folder), str(self._root))

    def check_unchanged(self, paths: Iterable[str]) -> None:
        """The files `paths` hold the bytes of their digests now.

        Costs a look at each, unless it was touched since it was hashed, or never was.
        """
        for path in paths:
            entry = self._entry(path)
            found = None
            with self._told(path), suppress(FileNotFoundError):
                found = FileIdentity.of(self.place(path).stat())
            if found is None or found != self._verified.get(path):
                self._check(entry)

    def check_in_place(self) -> None:
        """The bundle still stands at its name."""
        if not self._folder.stands():
            got = "was replaced while it was in use"
            raise BundleError(self._root, got, "", "run the command again")

    def _entry(self, path: str) -> FileEntry:
        if path not in self._entries:
            got = "is not listed in the manifest"
            raise BundleError(self._root / path, got, "", self._fix)
        return self._entries[path]

    def _check_place(self, entry: FileEntry) -> Path:
        """Its real path: it is a plain file inside the bundle and has its size."""
        file, expected = self._root / entry.path, f"{entry.size_bytes:,} bytes"
        with self._told(entry.path):
            target = real_place(self._folder, entry.path)
            if target is None:
                raise led_out(self._root, file)
            try:
                found = self.place(entry.path).stat()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise self._refused(entry.path, "is missing", expected) from error
        if not stat.S_ISREG(found.st_mode):
            raise self._refused(entry.path, "is not a plain file", expected)
        if found.st_size != entry.size_bytes:
            got = "is truncated" if found.st_size < entry.size_bytes else "is too long"
            raise self._refused(entry.path, f"{got}, {found.st_size:,} bytes", expected)
        return target

    def _check(self, entry: FileEntry, *, anew: bool = False) -> None:
        """The file's bytes are those of its digest, and its identity is known."""
        target, file = self._check_place(entry), self.place(entry.path)
        with self._told(entry.path):
            # Taken before: what touches the file while it is hashed is seen by the next look.
            looked_ns = time.time_ns()
            identity = FileIdentity.of(file.stat())
            if anew or not self._known.holds(target, identity, entry.sha256):
                digest = sha256(file)
                self._known.remember(target, identity, digest, looked_ns)
                self._compare(entry, digest)
        self._verified[entry.path] = identity

    def _compare(self, entry: FileEntry, digest: str) -> None:
        if digest != entry.sha256:
            got = f"was altered, sha256 {digest[:12]}"
            raise self._refused(entry.path, got, entry.sha256[:12])

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """An OSError of the body is a BundleError about `path`."""
        try:
            yield
        except OSError as error:
            raise self._refused(path, f"cannot be read ({error.strerror})", "") from error

    def _refused(self, path: str, got: str, expected: str) -> BundleError:
        # Where nothing can be locked, what was replaced is deleted under its readers.
        self.check_in_place()
        return BundleError(self._root / path, got, expected, self._fix)


def real_place(folder: PinnedFolder, path: str) -> Path | None:
    """Where `path` below `folder` leads; None when that is outside. Raises OSError."""
    while True:
        home = os.path.realpath(folder.path)
        target = Path(os.path.realpath(folder.path / path))
        if target.is_relative_to(home):
            return target
        if os.path.realpath(folder.path) == home:  # and it was not renamed in between
            return None


def led_out(root: Path, file: Path) -> BundleError:
    """What to tell of `file`, which is a link out of the bundle at `root`."""
    fix = (
        "links out of a bundle are not followed; make a copy of the files themselves with: "
        f"cp -rL {shlex.quote(str(root))} bundle-copy"
    )
    got = f"leads to {os.path.realpath(file)}"
    return BundleError(file, got, "a file inside the bundle", fix)


def sha256(file: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(chunk):
            digest.update(chunk[:size])
    return digest.hexdigest()
