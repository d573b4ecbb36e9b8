"""Finished scenes on disk, one line each: what a run that was killed goes on from.

A folder holds `scenes/METHOD.jsonl`, whose first line says what the rest was measured with, and
`dense/SCENE.npy`, the log-probabilities of dense's first answer tokens, which other methods' are
compared with. A line is on disk before the next scene begins; the last one may be torn.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.output import whole_file

SCHEMA = 2
LOCK = ".lock"
NAMES = ("scenes", "dense", LOCK)
"""Of what stands in the folder."""
Record = dict[str, Any]
"""Of a scene: its `scene`, and whatever was measured of it."""


class Store:
    """The folder `root` of one run, which no other run may write meanwhile; see `open_store`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, method: str, header: Mapping[str, Any], *, force: bool = False) -> SceneFile:
        """The finished scenes of `method`, which were measured with what `header` says.

        With `force` those of another header are dropped. Raises SettingsError for another header
        without, and when the folder cannot be written.
        """
        with written(self.root):
            path = self.root / "scenes" / f"{file_name(method)}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = {"schema": SCHEMA, "method": method, **header}
            return SceneFile(path, json.loads(json.dumps(whole)), force=force)

    def keep_dense(self, scene: str, rows: NDArray[np.float32]) -> None:
        """Dense's log-probabilities [questions, V] of `scene` are on disk."""
        with written(self.root):
            path = self._dense(scene)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as file:
                np.save(file, rows)

    def dense(self, scene: str) -> NDArray[np.float32]:
        """What was kept of `scene`. Raises SettingsError when it is not there or damaged."""
        path = self._dense(scene)
        try:
            rows: NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            fix = "start over with --force"
            raise SettingsError(path, f"cannot be read ({error})", fix=fix) from error
        return rows

    def _dense(self, scene: str) -> Path:
        return self.root / "dense" / f"{file_name(scene)}.npy"


class SceneFile:
    """Records by scene, in a file that only grows; a torn last line is cut off when it is opened.

    Raises SettingsError when its header is another than `header`, unless it is to be started over
    by `force`.
    """

    def __init__(self, path: Path, header: Record, *, force: bool) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        found, sound = _lines(path)
        if found and (found[0] != header or force):
            if not force:
                raise SettingsError(
                    path,
                    f"was measured with another {_differing(found[0], header)}",
                    fix="name another --output, or start over with --force",
                )
            found = []
        if not found:
            with whole_file(path) as file:
                file.write(_line(header))
            return
        with path.open("r+b") as file:
            file.truncate(sound)
        self.records = {record["scene"]: record for record in found[1:]}

    def add(self, record: Record) -> None:
        """`record` is on disk. Raises SettingsError when it cannot be written."""
        with written(self.path), self.path.open("ab") as file:
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["scene"]] = record


def goes_on(there: int, of: int, methods: int, unit: str = "questions") -> str:
    """What is said of a run of so many `methods` that begins with `there` of its `of` `unit`."""
    each = f", of {methods} methods" * (methods > 1)
    return f"goes on: {there:,} of {of:,} {unit} are there{each}"


@contextmanager
def open_store(root: Path) -> Iterator[Store]:
    """The store in the folder `root`, which is made.

    Raises SettingsError when it cannot be written, or another run writes it.
    """
    with written(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / LOCK).open("wb")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            fix = "wait for it, or name another --output"
            raise SettingsError(f"--output {root}", "another run writes it", fix=fix) from error
        yield Store(root)


@contextmanager
def written(place: Path) -> Iterator[None]:
    """What cannot be written below `place` is one line. Raises SettingsError."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"--output {place}",
            f"cannot be written ({error.strerror or error})",
            fix="check its folder and the space left, or choose another path",
        ) from error


def file_name(name: str) -> str:
    """A file's name for `name`: the same where it is one, else without what may not be in one and
    with a digest, so that no two names share a file."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,99}", name):
        return name
    plain = re.sub(r"[^a-z0-9_=-]", "_", name.lower())[:100]
    return f"{plain}.{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _lines(path: Path) -> tuple[list[Record], int]:
    """The whole lines at the start of the file at `path`, and where they end."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    found: list[Record] = []
    sound = 0
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or (found and "scene" not in record):
            break
        found.append(record)
        sound += len(line)
    return found, sound


def _differing(found: Record, header: Record) -> str:
    names = [name for name in {**header, **found} if found.get(name) != header.get(name)]
    return " and ".join(names)
