"""The wheel holds the four packages once, and nothing else."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

import stc

ROOT = Path(__file__).parents[1]
FOLDERS = {"stc": "stc", "export": "stc/export", "engines": "stc/engines", "runtime": "stc/runtime"}
"""Each source folder, and where a wheel puts it."""
DATA = {"stc/scenes/data": "stc/scenes/data", "export/demo/model": "stc/export/demo/model"}
"""Folders of what is no module, and where a wheel puts them."""

HELPS = """
import sys
from importlib import import_module
for target in sys.argv[1:]:
    module, function = target.split(":")
    try:
        getattr(import_module(module), function)(["--help"])
    except SystemExit as left:
        assert left.code == 0, target
    print(chr(0))
"""
"""A program that calls commands one after the other."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves build/ and egg-info behind."""
    source = tmp_path_factory.mktemp("source")
    for name in (*FOLDERS, "tests", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", *["data"] * (name == "tests"))
            shutil.copytree(path, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(source / "dist")]
    if find_spec("setuptools") is not None:
        build.append("--no-isolation")
    built = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = (source / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_each_module_once_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    modules = [
        f"{target}/{path.relative_to(ROOT / folder)}"
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*.py")
        if folder != "stc" or path.relative_to(ROOT).parts[1] not in FOLDERS
    ]
    data = [
        f"{target}/{path.relative_to(ROOT / source)}"
        for source, target in DATA.items()
        for path in (ROOT / source).iterdir()
    ]
    assert Counter(names) == Counter([*modules, *data, "stc/py.typed"])
    assert {
        "stc/__init__.py",
        "stc/runtime/stream/session.py",
        "stc/export/command.py",
        "stc/export/demo/model/model.safetensors",
    } <= set(names)


def test_no_source_is_ignored_by_git() -> None:
    """A folder called as what tools leave behind (build, dist, out) would be lost in silence."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    sources = [str(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    asked = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(sources),
        capture_output=True,
        text=True,
    )
    assert (asked.returncode, asked.stdout) == (1, "")


def test_the_wheel_brings_licence_and_notice(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ("LICENSE", "NOTICE"):
            [member] = [n for n in archive.namelist() if n.endswith(f".dist-info/licenses/{name}")]
            assert archive.read(member) == (ROOT / name).read_bytes()


def test_the_wheel_states_version_python_and_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(member).decode())
    assert metadata["Name"] == "stc"
    assert metadata["Version"] == stc.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"export", "onnxruntime", "video", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    heavy = ("torch", "transformers", "onnx", "safetensors")
    assert needed
    assert not [line for line in needed if line.startswith(heavy)]


def test_every_command_of_the_wheel_can_be_called(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [member] = [n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt")]
        entries = configparser.ConfigParser()
        entries.read_string(archive.read(member).decode())
    scripts = dict(entries["console_scripts"])
    assert {"stc-export", "stc-run", "stc-parity", "stc-bench", "stc-eval"} <= set(scripts)
    # Where the wheel is all there is of stc.
    alone = wheel.parent / "alone"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(alone), str(wheel)], check=True)
    called = subprocess.run(
        [sys.executable, "-c", HELPS, *scripts.values()],
        cwd=alone,
        env={**os.environ, "PYTHONPATH": str(alone)},
        capture_output=True,
        text=True,
    )
    assert called.returncode == 0, called.stderr
    *helps, rest = called.stdout.split("\0\n")
    assert rest == ""
    for name, shown in zip(scripts, helps, strict=True):
        assert shown.startswith(f"usage: {name}")
