"""The commands as users run them: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av

from tests.own_process import script_of

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "tests" / "data" / "street.mp4"
"""200 frames."""

MODULES = {
    "stc-export": "stc.export.command",
    "stc-run": "stc.runtime.commands.run",
    "stc-parity": "stc.runtime.commands.parity",
    "stc-bench": "stc.runtime.commands.bench",
    "stc-eval": "stc.runtime.commands.eval",
    "stc-build": "stc.engines.command",
    "stc-plan": "stc.runtime.commands.plan",
    "stc-doctor": "stc.runtime.commands.doctor",
}
"""Module behind each command."""


def start(
    folder: Path, command: str, *arguments: object, **environment: str
) -> subprocess.Popen[str]:
    """`command` running in `folder` with `environment` added, both outputs piped."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, *script_of(command), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(
    folder: Path, command: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`command` when it has ended."""
    with start(folder, command, *arguments, **environment) as process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def standing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in `folder`, hidden files too: a file with its size and time of change."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        change = (status.st_size, status.st_mtime_ns)
        found[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else change
    return found


def frames_of(video: Path) -> int:
    """How many pictures of `video` can be decoded."""
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))
