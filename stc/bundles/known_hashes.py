"""What files were hashed to, remembered in the user's cache, so that gigabytes are hashed once."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from stc.bundles.part_file import replacing

MAX_FILES = 1000
"""How many files are remembered; the one hashed longest ago is forgotten first."""
MAX_BYTES = 4 << 20
RECENT_NS = 3_000_000_000
"""Change times come in steps, of 2 s at most: a change after one so recent may not show."""


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
        lines = [_line(path, identity, sha256), *others][:MAX_FILES]
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
                return file.read(MAX_BYTES).splitlines()
        return []


def _start(path: Path) -> bytes:
    return f"{str(path)!a} ".encode()


def _line(path: Path, identity: FileIdentity, sha256: str) -> bytes:
    return _start(path) + " ".join(map(str, (*astuple(identity), sha256))).encode()


def _opened(path: str, flags: int) -> int:
    """No link is followed, and no pipe waited on."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
