"""Where a command's JSON document goes: a file that appears whole, or the last line of stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stc.errors import SettingsError
from stc.runtime.output.whole_file import whole_file

Document = dict[str, Any]


@contextmanager
def document_output(target: str | None) -> Iterator[Callable[[Document], None]]:
    """A function for the body to call once, at its end, with the document.

    target: `--json` as the user wrote it. A file is opened now, so that nobody waits for a result
        that cannot be kept, and appears when the body ends without an error; `-` is one line on
        stdout; None is nowhere.

    Raises SettingsError when it names a folder or cannot be written.
    """
    if target is None:
        yield lambda document: None
    elif target == "-":
        yield lambda document: print(json.dumps(document, allow_nan=False))
    elif target.endswith("/"):
        raise SettingsError(f"--json {target}", "names a folder", "a file", "name a file inside it")
    else:
        with ExitStack() as stack:
            with _one_line_errors(target):
                file = stack.enter_context(whole_file(Path(target)))
            yield lambda document: _write(target, file, document)
            with _one_line_errors(target):
                stack.close()


def _write(target: str, file: BinaryIO, document: Document) -> None:
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with _one_line_errors(target):
        file.write(text.encode())


@contextmanager
def _one_line_errors(target: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"--json {target}",
            f"cannot be written ({error.strerror or error})",
            fix="check its folder and the space left, or choose another path",
        ) from error
