"""Libraries older than the project declares: told in one line, by stc-run as by stc-doctor."""

from __future__ import annotations

import re
import shutil
from importlib import import_module, metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc import optional
from stc.errors import StcError
from stc.runtime.commands import doctor as doctor_command
from stc.runtime.commands import run as run_command
from tests.as_user import CLIP, ROOT

OLD = {
    "av": ("av", "13.1.0"),
    "onnxruntime": ("onnxruntime", "1.20.0"),
    "tokenizers": ("tokenizers", "0.20.3"),
    "jinja2": ("jinja2", "3.1.2"),
}
"""By pip's name: the module and a version that pip would not have installed beside this project,
but another project did."""


@pytest.mark.parametrize("package", OLD)
def test_a_library_that_another_project_replaced_by_an_older_one_is_named(
    package: str,
    demo_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shared environment: stc-run ends in one line that names version and fix, no traceback."""
    module, version = OLD[package]
    monkeypatch.setattr(import_module(module), "__version__", version)
    flags = ["--video", str(CLIP), "--frames", "1", "--ask", "What is it?"]
    assert run_command.main([str(demo_bundle), *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert f"{package} {version} is too old" in line
    assert f"pip install --upgrade '{package}>={optional.oldest(package)}'" in line


@pytest.mark.parametrize("package", ["av", "onnxruntime"])
def test_the_doctor_fails_where_a_run_would(
    package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor said that all was well, and the run after it had a traceback."""
    module, version = OLD[package]
    monkeypatch.setattr(import_module(module), "__version__", version)
    assert doctor_command.main([]) == 1
    assert f"{package} {version} is too old" in capsys.readouterr().out


def test_the_doctor_fails_for_a_bundle_that_cannot_be_run(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy cut short: the machine is well, the bundle is not, and that decides."""
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle")
    assert doctor_command.main([str(bundle)]) == 0
    with (bundle / "graphs" / "weights.bin").open("r+b") as weights:
        weights.truncate(1000)
    assert doctor_command.main([str(bundle)]) == 1
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith(f"{bundle} cannot be run here: ")
    assert "weights.bin: is truncated" in told


def test_a_library_that_breaks_while_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package half replaced by another version: whatever it raises is one line."""
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('no symbol of that name')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StcError, match=r"cannot be loaded \(no symbol of that name\); fix it"):
        optional.load("broken_library", "broken", subject="a library", fix="fix it")


def test_minima_are_read_from_what_pip_reads() -> None:
    """One place declares them: pyproject.toml, as pip has installed it."""
    text = (ROOT / "pyproject.toml").read_text()
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text))
    del declared["setuptools"]
    assert {name: optional.oldest(name) for name in declared} == declared
    assert metadata.requires("stc")
    assert optional.oldest("no-such-package") is None


numbers = st.lists(st.integers(0, 99), min_size=1, max_size=4)


@given(numbers, numbers, st.sampled_from(["", ".post1", "+cpu", "rc1", ".dev0+gpu", "-1ubuntu2"]))
def test_versions_are_compared_by_their_numbers(
    version: list[int], least: list[int], ending: str
) -> None:
    """Vendors' builds carry endings of their own; 1.23 is no older than 1.23.0."""
    width = max(len(version), len(least))
    padded = [parts + [0] * (width - len(parts)) for parts in (version, least)]
    written = ".".join(map(str, version)) + ending
    assert optional.older(written, ".".join(map(str, least))) == (padded[0] < padded[1])


@pytest.mark.parametrize("version", ["unknown", "", "vendor build"])
def test_a_version_that_is_no_version_is_not_refused(version: str) -> None:
    """A board's own build may say anything: it is tried."""
    assert not optional.older(version, "1.23")
