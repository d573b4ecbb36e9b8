"""The device's environment: Python 3.10, ONNX Runtime, PyAV; no torch, transformers or onnx.

At the versions of constraints.txt, and (slow) at the oldest that pyproject.toml allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.as_user import CLIP, ROOT, frames_of
from tests.once import Once

ABSENT = ("torch", "transformers", "onnx", "safetensors", "huggingface_hub")
EXTRAS = "onnxruntime,video,language"

# Prints the modules it imported, then those of ABSENT that were asked for, also in vain.
IMPORT_ALL = f"""
import importlib, pkgutil, sys

class Absent:
    asked = []
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            self.asked.append(name)
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
imported = []
for package in map(importlib.import_module, ("stc", "stc.engines", "stc.runtime")):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith("stc.export"):
            importlib.import_module(module.name)
            imported.append(module.name)
print(*imported)
print(*Absent.asked)
"""


INSTALLED = """
import importlib.metadata, json
installed = importlib.metadata.distributions()
print(json.dumps({one.metadata["Name"].lower(): one.version for one in installed}))
"""


def import_all(python: Path | str) -> tuple[set[str], list[str]]:
    """The modules imported, and the absent ones they asked for."""
    ran = subprocess.run(
        [str(python), "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    imported, asked = ran.stdout.splitlines()
    return set(imported.split()), asked.split()


def every_module() -> set[str]:
    """Each module of the folders that run on a device."""
    return {
        ".".join(["stc", *path.relative_to(ROOT / folder if folder == "stc" else ROOT).parts])[:-3]
        for folder in ("stc", "engines", "runtime")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__" and not path.is_relative_to(ROOT / "stc" / "export")
    }


def python310() -> str | None:
    """A Python 3.10 that works, or None."""
    found = [shutil.which("python3.10"), sys.executable]
    found += sorted(map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python")))
    if uv := shutil.which("uv"):
        find = subprocess.run([uv, "python", "find", "3.10"], capture_output=True, text=True)
        found.append(find.stdout.strip())
    for python in filter(None, found):
        # pyenv's shims exist and fail.
        asked = subprocess.run([python, "--version"], capture_output=True, text=True)
        if asked.stdout.startswith("Python 3.10."):
            return python
    return None


@pytest.fixture(
    scope="module",
    params=["constraints", pytest.param("minima", marks=pytest.mark.slow)],
)
def device(request: pytest.FixtureRequest, once: Once) -> Path:
    """The bin folder of the device's environment; made once for each set of constraints."""
    python = python310()
    if python is None:
        pytest.skip("no Python 3.10 in PATH, ~/.pyenv/versions or uv; install one to run this")
    read = {"constraints": ["cat", "constraints.txt"], "minima": ["scripts/minima"]}
    constraints = subprocess.check_output(read[request.param], cwd=ROOT)
    asked = (ROOT / "pyproject.toml").read_bytes() + constraints
    stamp = f"{ROOT} {EXTRAS} {hashlib.sha256(asked).hexdigest()}"
    environment = ROOT / {"constraints": ".venv-lean", "minima": ".venv-lean-minima"}[request.param]
    made = environment / "stamp"
    with once.alone("device environment"):
        if not made.exists() or made.read_text() != stamp:
            shutil.rmtree(environment, ignore_errors=True)
            subprocess.run([python, "-m", "venv", "--without-pip", str(environment)], check=True)
            (environment / "constraints.txt").write_bytes(constraints)
            pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
            install = [*pip, "install", "-qq", "--no-compile"]
            versions = ["--constraint", environment / "constraints.txt"]
            wanted = [*install, *versions, "--editable", f".[{EXTRAS}]"]
            subprocess.run(list(map(str, wanted)), cwd=ROOT, check=True)
            made.write_text(stamp)
    return environment / "bin"


def run_on(device: Path, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """A command of the device's environment, run in `folder`."""
    name, *arguments = map(str, command)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(device / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_runtime_and_engines_ask_for_nothing_of_the_workstation() -> None:
    imported, asked = import_all(sys.executable)
    assert asked == []
    assert imported >= every_module()


def test_every_module_is_imported_on_the_device(device: Path) -> None:
    imported, asked = import_all(device / "python")
    assert asked == []
    assert imported >= every_module()


def onnxruntime_of(device: Path) -> str:
    """The version that the environment was asked for."""
    lines = (device.parent / "constraints.txt").read_text().splitlines()
    # The pins name the last one for Python 3.10 below that of newer Pythons.
    *_, last = (line for line in lines if line.startswith("onnxruntime=="))
    return last.partition(";")[0].removeprefix("onnxruntime==")


def test_the_device_has_the_tested_versions_and_nothing_heavy(device: Path) -> None:
    listed = run_on(device, ROOT, "python", "-c", INSTALLED)
    versions: dict[str, str] = json.loads(listed.stdout)
    # tokenizers brings huggingface_hub along; nothing imports it.
    heavy = {name for name in ABSENT if name != "huggingface_hub"}
    assert not versions.keys() & heavy
    assert versions["onnxruntime"].startswith(onnxruntime_of(device))


def test_a_device_streams_a_bundle_made_elsewhere(
    device: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "copied")
    flags = ["--video", CLIP, "--frames", 8, "--overlay", "o.mp4", "--json", "o.json"]
    ran = run_on(device, tmp_path, "stc-run", bundle, *flags)
    assert ran.returncode == 0, ran.stderr
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["summary"]["frames"] == 8
    assert document["machine"]["python"].startswith("3.10.")
    assert document["machine"]["versions"]["onnxruntime"].startswith(onnxruntime_of(device))
    assert frames_of(tmp_path / "o.mp4") == 8
    assert (tmp_path / "o.png").stat().st_size > 0


def test_a_device_answers_questions(device: Path, demo_bundle: Path, tmp_path: Path) -> None:
    flags = ["--video", CLIP, "--frames", 8, "--max-new-tokens", 5, "--json", "-"]
    asked = ["--ask", "What is moving?", "--ask", "How many?"]
    ran = run_on(device, tmp_path, "stc-run", demo_bundle, *flags, *asked)
    assert ran.returncode == 0, ran.stderr
    answers = json.loads(ran.stdout.splitlines()[-1])["language"]["questions"]
    assert [one["question"] for one in answers] == ["What is moving?", "How many?"]
    for one in answers:
        assert one["answer"]
        assert f"] {one['question']}\n> {one['answer']}" in ran.stdout


def test_a_device_measures_itself(device: Path, demo_bundle: Path, tmp_path: Path) -> None:
    ran = run_on(device, tmp_path, "stc-bench", demo_bundle, "--frames", 4)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["reuse_over_reference"] > 0


def test_a_device_measures_what_compression_costs(
    device: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    flags = ["--data", f"clip:{CLIP}", "--frames", 4, "--methods", "cacher", "--json", "-"]
    ran = run_on(device, tmp_path, "stc-eval", demo_bundle, *flags)
    assert ran.returncode == 0, ran.stderr
    methods = json.loads(ran.stdout.splitlines()[-1])["methods"]
    assert methods["cacher"]["tower_cost"] < methods["off"]["tower_cost"] == 1


def test_what_needs_torch_says_so_on_a_device(
    device: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    for command in (["stc-parity", demo_bundle], ["stc-export", "--model", "demo"]):
        ran = run_on(device, tmp_path, *command)
        assert (ran.returncode, ran.stdout) == (2, "")
        [line] = ran.stderr.splitlines()
        assert line.startswith("error: ")
        assert "pip install 'stc[export]'" in line
