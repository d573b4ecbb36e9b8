"""Python in a process of its own: for what changes the whole process, or measures it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENTRIES = {"stc-eval": "evaluate"}
"""Names in `stc.entry` that are not the command's own: `eval` is one of Python's."""


def script_of(command: str) -> list[str]:
    """What Python is given to begin `command` as its installed script does."""
    name = ENTRIES.get(command, command.removeprefix("stc-"))
    return ["-c", f"import sys; from stc import entry; sys.exit(entry.{name}())"]


def run_python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The outcome of this interpreter with `arguments`, run from the repository's root."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
