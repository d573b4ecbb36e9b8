"""What users do wrong: one line that starts with `error: `, exit 2, nothing new on disk.

`tests.test_bundle`, `test_video` and `test_checkpoint` have the mistakes one by one; here are the
commands that meet them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.manifest import MANIFEST, WEIGHTS
from tests.as_user import CLIP, MODULES, frames_of, run, standing
from tests.clips import numbered, write_clip, write_sound
from tests.language_cases import language_case
from tests.tiny_checkpoint import change_json, tiny_model, write_checkpoint

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """The line a command is refused with, in `tmp_path`, where nothing changes.

    Within this process: for what is found before an engine is loaded.
    """
    monkeypatch.chdir(tmp_path)

    def line(command: str, *arguments: object) -> str:
        before = standing(tmp_path)
        try:
            code = import_module(MODULES[command]).main([str(argument) for argument in arguments])
        except SystemExit as refusal:  # argparse
            code = refusal.code
        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert standing(tmp_path) == before
        return only_line(said.err)

    return line


def only_line(stderr: str) -> str:
    [line] = stderr.splitlines()
    assert line.startswith("error: ")
    return line


def refused_midway(result: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that had begun to print frames."""
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == result.stderr.splitlines()[-1:]
    assert "Traceback" not in result.stderr
    return errors[0]


def altered(bundle: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of `bundle` whose manifest went through `change`."""
    shutil.copytree(bundle, copy, dirs_exist_ok=True)
    document = json.loads((copy / MANIFEST).read_text())
    change(document)
    (copy / MANIFEST).write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize("command", MODULES)
def test_flags_that_do_not_exist_are_refused(command: str, refused: Refused) -> None:
    required = {
        "stc-export": ["--model", "demo"],
        "stc-run": ["B", "--video", "V"],
        "stc-build": ["B", "--target", "sm89"],
        "stc-plan": ["B", "--target", "sm89"],
    }
    line = refused(command, *required.get(command, ["B"]), "--no\nsuch-flag", "x")
    assert "unrecognized arguments: --no such-flag x" in line
    assert line.endswith(f"see {command} --help")


@pytest.mark.parametrize("command", sorted(set(MODULES) - {"stc-doctor"}))
def test_missing_arguments_are_refused(command: str, refused: Refused) -> None:
    assert "are required" in refused(command)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "papier"], "--preset: got 'papier', expected one of cacher,"),
        (["--recompute-ratio", "0"], "--recompute-ratio: got 0.0, expected 0 < R <= 1"),
        (["--recompute-ratio", "1.01"], "--recompute-ratio: got 1.01"),
        (["--recompute-ratio", "nan"], "--recompute-ratio: got nan"),
        (["--recompute-ratio", "half"], "invalid float value: 'half'"),
        (["--reference-interval", "0"], "--reference-interval: got 0"),
        (["--budget", "50"], "--budget: got 50, expected at most 49"),
        (["--budget", "-1"], "--budget: got -1"),
        (["--pruner", "random"], "--pruner: got 'random'"),
        (["--selection", "all"], "--selection: got 'all'"),
    ],
)
@pytest.mark.parametrize("command", ["stc-export", "stc-run"])
def test_settings_out_of_range_are_refused(
    command: str, flags: list[str], message: str, demo_bundle: Path, refused: Refused
) -> None:
    if command == "stc-export":
        assert message in refused(command, "--model", "demo", "--output", "bundle", *flags)
    else:
        outputs = ["--overlay", "o.mp4", "--json", "o.json"]
        assert message in refused(command, demo_bundle, "--video", CLIP, *outputs, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "llava"], "invalid choice: 'llava'"),
        (["--model", "llava-ov"], "got no weights"),
        (["--model", "demo", "--random-weights"], "got other weights"),
        (["--model", "llava-ov", "--random-weights", "--checkpoint", "x"], "not allowed with"),
        (["--model", "llava-ov", "--checkpoint", "missing"], "'missing': no such directory"),
        (["--model", "llava-ov", "--checkpoint", "empty"], "empty/config.json: no such file"),
    ],
)
def test_export_without_a_usable_source_is_refused(
    flags: list[str], message: str, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "empty").mkdir()
    assert message in refused("stc-export", *flags)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    return write_checkpoint(directory, tiny_model(), "5.x sharded")


def _other_model(checkpoint: Path) -> None:
    change_json(checkpoint / "config.json", model_type="llava", architectures=["Llava"])


def _missing_shard(checkpoint: Path) -> None:
    sorted(checkpoint.glob("*.safetensors"))[1].unlink()


def _truncated_shard(checkpoint: Path) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def _pickled(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.safetensors*"):
        file.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x02.")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_model, "llava"),
        (_missing_shard, "which is missing"),
        (_truncated_shard, "truncated or not a safetensors file"),
        (_pickled, "expected model.safetensors; convert them"),
    ],
)
def test_checkpoints_that_cannot_be_used_are_refused(
    spoil: Callable[[Path], None], message: str, sharded: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(sharded, tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint")
    line = refused(
        "stc-export", "--model", "llava-ov", "--checkpoint", "checkpoint", "--output", "bundle"
    )
    assert message in line


def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    # Nothing listens on the discard port.
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    flags = ["--model", "llava-ov", "--checkpoint", "some/model", "--output", tmp_path / "bundle"]
    assert "could not be reached" in refused("stc-export", *flags)


def test_an_output_that_is_taken_is_refused(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    flags = ["--model", "demo", "--output"]
    line = refused("stc-export", *flags, "notes")
    assert "exists and is not empty; choose another --output" in line
    assert "--force" not in line
    assert "--force would delete them" in refused("stc-export", *flags, "notes", "--force")
    assert "is a file" in refused("stc-export", *flags, "notes/thesis.tex")
    assert "is a file" in refused("stc-export", *flags, "notes/thesis.tex/bundle")
    # Where not even root may write.
    assert "cannot be written" in refused("stc-export", *flags, "/proc/bundle")


def test_a_full_disk_is_one_line(full_disk: Path, refused: Refused) -> None:
    output = full_disk / "bundle"
    line = refused("stc-export", "--model", "demo", "--output", output)
    assert f"error: {output}: cannot be written (No space left on device); free space" in line
    assert standing(full_disk) == {}
    (full_disk / "others").write_bytes(bytes(1_900_000))
    before = standing(full_disk)
    overlay = full_disk / "overlay.mp4"
    bundle = language_case().bundle.root
    result = run(full_disk, "stc-run", bundle, "--video", CLIP, "--overlay", overlay)
    assert "overlay.mp4: cannot be written (No space left" in refused_midway(result)
    assert standing(full_disk) == before


def test_a_disk_that_fills_up_while_graphs_are_written_is_one_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stc.export.graphs.weights_file import WeightsFile

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WeightsFile, "__enter__", full)
    line = refused("stc-export", "--model", "demo", "--output", "bundle")
    assert "error: bundle: cannot be written (No space left on device); free space" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "none/o.json"], "--json none/o.json: cannot be written (No such file"),
        (["--json", "o/"], "--json o/: names a folder, expected a file"),
        (["--json", "."], "--json .: cannot be written (is a folder)"),
        (["--overlay", "none/o.mp4"], "none/o.mp4: cannot be written"),
        (["--overlay", "o.avi"], "o.avi: unknown ending '.avi'"),
        (["--overlay", "street.mp4"], "--overlay: street.mp4 is --video as well"),
        (["--overlay", "o.mp4", "--json", "./o.mp4"], "--json: ./o.mp4 is --overlay as well"),
        (["--overlay", "o.mp4", "--json", "o.png"], "--json: o.png is the still of --overlay"),
        (["--frames", "0"], "--frames: got 0"),
        (["--fps", "inf"], "--fps: got inf"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_outputs_and_rates_that_cannot_be_are_refused_before_the_stream(
    flags: list[str], message: str, demo_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copy(CLIP, tmp_path / "street.mp4")
    assert message in refused("stc-run", demo_bundle, "--video", "street.mp4", *flags)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file; check the path"),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(bytes(range(256)) * 64), "not a video"),
        (lambda path: write_sound(path, "aac"), "has no video, only audio"),
    ],
    ids=["missing", "empty", "corrupt", "audio only"],
)
@pytest.mark.parametrize("command", ["stc-run", "stc-parity", "stc-bench"])
def test_videos_that_cannot_be_read_are_refused(
    command: str,
    write: Callable[[Path], object],
    message: str,
    demo_bundle: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    write(tmp_path / "clip.mp4")
    outputs = ["--overlay", "o.mp4"] if command == "stc-run" else []
    line = refused(command, demo_bundle, "--video", "clip.mp4", "--json", "o.json", *outputs)
    assert f"error: clip.mp4: {message}" in line


def test_parity_of_a_single_frame_is_refused(
    demo_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    write_clip(tmp_path / "one.mp4", [numbered(1)])
    assert "one.mp4: 1 frame, expected" in refused("stc-parity", demo_bundle, "--video", "one.mp4")


def _of_two_sizes(path: Path) -> None:
    pictures = [numbered(3), numbered(4, width=96, height=64)]
    parts = [write_clip(path.with_suffix(f".{n}.ts"), [p] * 3) for n, p in enumerate(pictures)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))


@pytest.mark.parametrize(
    ("write", "name", "frames"),
    [
        (_of_two_sizes, "clip.ts", 6),
        (
            lambda path: write_clip(
                path, [numbered(n, width=63, height=35) for n in range(3)], codec="ffv1"
            ),
            "clip.mkv",
            3,
        ),
        (lambda path: write_clip(path, [numbered(1)]), "clip.mp4", 1),
    ],
    ids=["size changes", "odd size", "one frame"],
)
def test_unusual_videos_are_streamed(
    write: Callable[[Path], object], name: str, frames: int, demo_bundle: Path, tmp_path: Path
) -> None:
    write(tmp_path / name)
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    result = run(tmp_path, "stc-run", demo_bundle, "--video", name, *outputs)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "o.json").read_text())["summary"]["frames"] == frames
    assert frames_of(tmp_path / "o.mp4") == frames


def _newer(document: dict[str, Any]) -> None:
    document["schema_version"] += 1


def _leaving(document: dict[str, Any]) -> None:
    document["files"][0]["path"] = "../weights.bin"


def _whole(document: dict[str, Any]) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "spoil", "message"),
    [
        (_newer, None, "has schema version 3, expected 2 by stc"),
        (_leaving, None, "'../weights.bin' is no path inside the bundle"),
        (_whole, lambda root: (root / MANIFEST).unlink(), "is not a bundle"),
        (_whole, lambda root: (root / WEIGHTS).unlink(), "weights.bin: is missing"),
        (_whole, lambda root: os.truncate(root / WEIGHTS, 999), "weights.bin: is truncated"),
        (
            _whole,
            lambda root: (root / WEIGHTS).write_bytes((root / WEIGHTS).read_bytes()[::-1]),
            "weights.bin: was altered",
        ),
    ],
    ids=["newer", "leaving", "no manifest", "missing", "truncated", "altered"],
)
@pytest.mark.parametrize("command", ["stc-run", "stc-parity", "stc-bench"])
def test_bundles_that_are_not_whole_are_refused(
    command: str,
    change: Callable[[dict[str, Any]], None],
    spoil: Callable[[Path], object] | None,
    message: str,
    demo_bundle: Path,
    tmp_path: Path,
    refused: Refused,
) -> None:
    altered(demo_bundle, tmp_path / "bundle", change)
    if spoil is not None:
        spoil(tmp_path / "bundle")
    video = ["--video", CLIP] if command == "stc-run" else []
    assert message in refused(command, "bundle", *video)


def test_a_graph_that_yields_nan_is_named_with_its_frame(demo_bundle: Path, tmp_path: Path) -> None:
    weights = np.fromfile(demo_bundle / WEIGHTS, np.float32)
    weights[weights.size // 2] = np.nan
    digest = hashlib.sha256(weights.tobytes()).hexdigest()

    def vouch(document: dict[str, Any]) -> None:
        for entry in document["files"]:
            if entry["path"] == WEIGHTS:
                entry["sha256"] = digest

    bundle = altered(demo_bundle, tmp_path / "bundle", vouch)
    weights.tofile(bundle / WEIGHTS)
    Bundle.open(bundle)
    before = standing(tmp_path)
    outputs = ["--overlay", "o.mp4", "--json", "o.json"]
    result = run(tmp_path, "stc-run", bundle, "--video", CLIP, "--frames", 4, *outputs)
    line = only_line(result.stderr)
    assert result.returncode == 2
    assert "error: graph " in line
    assert ", frame 0: NaN or infinity in " in line
    assert standing(tmp_path) == before
