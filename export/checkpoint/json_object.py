"""Files of a checkpoint, read with errors a user can fix."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stc.errors import CheckpointError

FETCH = "download the checkpoint again, or pass the directory that holds all of it"
MAX_BYTES = 1 << 28
"""Larger than any tokenizer, and small enough to hold."""


@dataclass(frozen=True)
class Described:
    """A JSON object, and what errors about it name."""

    subject: object
    fields: Mapping[str, Any]


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of the regular file at `path`, or behind the link there; at most `most`.

    Raises CheckpointError when it is missing, no such file, larger, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CheckpointError(path, "no regular file", "a file with content", FETCH)
            content = file.read(most + 1)
    except FileNotFoundError as error:
        got = "a link to a file that is missing" if path.is_symlink() else "no such file"
        raise CheckpointError(path, got, fix=FETCH) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", fix=FETCH) from error
    if len(content) > most:
        raise CheckpointError(path, "too large", f"at most {most >> 20} MiB", FETCH)
    return content


def _open_at_once(path: str, flags: int) -> int:
    # A pipe that nobody writes to would let its reader wait for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object the file holds.

    Raises CheckpointError when it is missing or `parse_object` refuses it.
    """
    return parse_object(path, read_bytes(path))


def parse_text(subject: object, content: bytes) -> str:
    """`content` as text.

    Raises CheckpointError, which names `subject`, unless it is UTF-8 without NUL.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        got = f"not UTF-8 (byte {error.start})"
        raise CheckpointError(subject, got, "text in UTF-8", "save it as UTF-8") from error
    if "\0" in text:
        raise CheckpointError(subject, "holds NUL", "text in UTF-8", FETCH)
    return text


def parse_object(subject: object, content: bytes) -> dict[str, Any]:
    """The JSON object `content` is.

    Raises CheckpointError, which names `subject`, when it is none: not JSON, nested without end,
    with a key twice in one object, or another value. UTF-8 is read, as transformers reads it.
    """
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except _RepeatedKeyError as error:
        got = f"holds the key {str(error)[:80]} twice in one object"
        raise CheckpointError(subject, got, "every key once", "keep the right one") from error
    except ValueError as error:
        raise CheckpointError(subject, f"not valid JSON ({error})", fix=FETCH) from error
    except RecursionError as error:
        raise CheckpointError(subject, "nested too deeply", "a JSON object", FETCH) from error
    if not isinstance(value, dict):
        raise CheckpointError(subject, f"holds a {type(value).__name__}", "a JSON object", FETCH)
    return value


class _RepeatedKeyError(Exception):
    """A key stands twice in one object: readers differ in which of its values they take."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(repr(key))
        found[key] = value
    return found
