"""Outputs never land on what a command reads: the video, the bundle, the checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stc.bundles.bundle import Bundle
from stc.export import command as export_command
from stc.manifest import MANIFEST, WEIGHTS
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import plan as plan_command
from stc.runtime.commands import run as run_command
from tests.as_user import CLIP, standing
from tests.tiny_bundle import write_bundle

Outcome = subprocess.CompletedProcess[str]
MAINS = {
    "stc-run": run_command.main,
    "stc-parity": parity_command.main,
    "stc-bench": bench_command.main,
}


ALL_MAINS = {**MAINS, "stc-plan": plan_command.main}


@pytest.fixture
def refused(
    run_main: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """The line a command is refused with, in `tmp_path`, where nothing changes."""
    monkeypatch.chdir(tmp_path)

    def line(command: str, *arguments: object) -> str:
        before = standing(tmp_path)
        done = run_main(ALL_MAINS[command], *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert standing(tmp_path) == before
        [told] = done.stderr.splitlines()
        return told

    return line


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("inside", [MANIFEST, WEIGHTS, "new.json", "graphs/new.json"])
def test_no_output_lands_inside_the_bundle(
    command: str, inside: str, demo_bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copytree(demo_bundle, tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    video = ["--video", CLIP]
    for output in (f"bundle/{inside}", tmp_path / "link" / inside):
        line = refused(command, "bundle", *video, "--json", output)
        assert line == (f"error: --json: {output} is inside the bundle bundle; choose another path")
    Bundle.open(tmp_path / "bundle")


@pytest.mark.parametrize("command", MAINS)
def test_no_output_lands_on_the_video(
    command: str, demo_bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(CLIP, tmp_path / "v.mp4")
    (tmp_path / "soft.mp4").symlink_to("v.mp4")
    os.link(tmp_path / "v.mp4", tmp_path / "hard.mp4")
    for video in ("v.mp4", "soft.mp4", "hard.mp4", f"file://{tmp_path}/v.mp4"):
        line = refused(command, demo_bundle, "--video", video, "--json", "v.mp4")
        assert line == "error: --json: v.mp4 is --video as well; choose another path"


@pytest.mark.parametrize("flag", ["--json", "--picture"])
def test_no_output_lands_on_times_that_a_plan_is_calibrated_by(
    flag: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    inputs = ["--calibrate", "a.json", "--calibrate", "b.json"]
    for name in ("a.json", "b.json"):
        line = refused("stc-plan", "bundle", "--target", "sm86", *inputs, flag, name)
        assert line == f"error: {flag}: {name} is --calibrate as well; choose another path"


def test_an_overlay_does_not_replace_the_video_of_an_address(
    demo_bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    shutil.copy(CLIP, tmp_path / "a video.mp4")
    video = (tmp_path / "a video.mp4").as_uri()
    line = refused("stc-run", demo_bundle, "--video", video, "--overlay", "a video.mp4")
    assert line.startswith("error: --overlay: a video.mp4 is --video as well")
    shutil.copy(CLIP, tmp_path / "v.png")
    line = refused("stc-run", demo_bundle, "--video", "v.png", "--overlay", "v.mp4")
    assert line.startswith("error: the still of --overlay: v.png is --video as well")


@pytest.mark.parametrize("command", ["stc-parity", "stc-bench"])
def test_no_output_lands_inside_the_checkpoint(
    command: str, demo_bundle: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    flags = ["--checkpoint", "checkpoint", "--json", "checkpoint/config.json"]
    if command == "stc-bench":
        flags += ["--against", "torch"]
    line = refused(command, demo_bundle, *flags)
    assert line.startswith("error: --json: checkpoint/config.json is inside --checkpoint")


def test_an_overlay_without_a_name_is_one_line(
    demo_bundle: Path, refused: Callable[..., str]
) -> None:
    line = refused("stc-run", demo_bundle, "--video", CLIP, "--overlay", ".")
    assert "unknown ending ''" in line


def test_an_output_of_an_export_is_refused_before_torch_is_imported(
    run_main: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "stc.export.bundle_export", None)
    write_bundle(tmp_path / "bundle")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    (tmp_path / "bundle.txt").write_text("none")
    before = standing(tmp_path)

    def line(*arguments: object) -> str:
        done = run_main(export_command.main, "--model", "demo", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert standing(tmp_path) == before
        [told] = done.stderr.splitlines()
        return told

    other = "choose another --output"
    for output, flags, told in (
        ("bundle", [], f"exists and is not empty; replace it with --force, or {other}"),
        ("mine", [], f"exists and is not empty; {other}"),
        ("mine", ["--force"], "holds files and is no bundle, --force would delete them"),
        ("bundle.txt", ["--force"], f"is a file; {other}"),
        ("/proc/bundle", [], "cannot be written (No such file or directory)"),
        ("/proc/none/bundle", ["--force"], "cannot be written (No such file or directory)"),
        ("n" * 245, [], f"cannot be written (File name too long); {other}"),
    ):
        assert line("--output", output, *flags).startswith(f"error: {output}: {told}")
    for flags in (["--output", "bundle", "--force"], ["--output", "n" * 240], ["--output", "a/b"]):
        assert "stc.export.bundle_export is not installed" in line(*flags)
