"""Files of a checkpoint, read with errors a user can mend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stc.errors import CheckpointError

FETCH = "download the checkpoint again, or pass the directory that holds all of it"


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises CheckpointError when it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(path, "no such file", mend=FETCH) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror})", mend=FETCH) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object the file holds.

    Raises CheckpointError when it is missing, not JSON, or not an object.
    """
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise CheckpointError(path, f"not valid JSON ({error})", mend=FETCH) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, f"holds a {type(value).__name__}", "a JSON object", FETCH)
    return value
