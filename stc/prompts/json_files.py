"""A checkpoint's text and JSON files, held as bytes by name, read with errors that name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stc.errors import LanguageError

SAVE = "save it as UTF-8, without a byte order mark"


def text_of(files: Mapping[str, bytes], file: str, name: str) -> str:
    """The text of `file`, which is there, of the checkpoint called `name`.

    Raises LanguageError when it is not UTF-8.
    """
    try:
        return files[file].decode()
    except UnicodeDecodeError as error:
        got = f"not UTF-8 (byte {error.start} is {files[file][error.start]:#04x})"
        raise LanguageError(f"{name}/{file}", got, "text in UTF-8", SAVE) from error


def read_object(files: Mapping[str, bytes], file: str, name: str) -> dict[str, Any]:
    """The JSON object in `file`; an empty one where there is no such file.

    Raises LanguageError when it is not JSON in UTF-8, or no object.
    """
    if file not in files:
        return {}
    subject, text = f"{name}/{file}", text_of(files, file, name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        fix = SAVE if text.startswith("\ufeff") else "copy it again"
        raise LanguageError(subject, f"not valid JSON ({error})", fix=fix) from error
    if not isinstance(value, dict):
        raise LanguageError(subject, f"holds a {type(value).__name__}", "a JSON object")
    return value
