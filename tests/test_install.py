"""`scripts/install` makes an environment anew when what stands there cannot be installed into."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from tests.own_process import ROOT

PYTHON = """#!/usr/bin/env bash
# Makes environments that are this very script, and says what it was asked for.
echo "$*" >>"$LOG"
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
fi
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def install(project: Path) -> list[str]:
    """What Python, the one named and the environment's, was asked for."""
    log = project / "log"
    log.write_text("")
    subprocess.run(
        [project / "scripts" / "install", "video"],
        env={**os.environ, "PYTHON": str(project / "python"), "LOG": str(log)},
        check=True,
        capture_output=True,
    )
    return log.read_text().splitlines()


def test_an_environment_without_pip_is_made_again(project: Path) -> None:
    venv.create(project / ".venv", with_pip=False)
    asked = install(project)
    assert "-m venv .venv" in asked
    assert any(line.startswith("-m pip install") and line.endswith(".[video]") for line in asked)


def test_an_environment_that_has_all_is_left_alone(project: Path) -> None:
    install(project)
    assert install(project) == ["-m pip --version"]
