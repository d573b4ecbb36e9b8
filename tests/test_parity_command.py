"""`stc-parity` says whether a bundle equals PyTorch, and what is wrong when it cannot say."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.method.graphs import vision_graphs
from stc.runtime.commands import parity as parity_command
from stc.runtime.parity import language as parity_language
from stc.runtime.parity import whole as parity_whole
from stc.runtime.stream import opening
from stc.runtime.video.open import open_video
from stc.settings import SELECTIONS
from tests.clips import numbered_clip
from tests.vision_cases import DATA, Exported

STREET = DATA / "street.mp4"


COUNTED = {
    parity_language.OTHERS,
    parity_whole.OTHERS,
    parity_whole.STOP_TOKENS,
    parity_whole.PROMPT_TOKENS,
}
"""Rows that count what differs: none may."""

Outcome = subprocess.CompletedProcess[str]


@pytest.fixture
def stc_parity(run_main: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """`stc-parity`, in this process."""
    return lambda *arguments: run_main(parity_command.main, *arguments)


def document_of(done: Outcome) -> dict[str, Any]:
    """The last line of stdout."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1], parse_constant=refuse)
    return document


def one_line(done: Outcome) -> str:
    """What a user's mistake printed: one line, and nothing else."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_demo_bundle_equals_pytorch_on_a_video(
    demo_bundle: Path, stc_parity: Callable[..., Outcome]
) -> None:
    done = stc_parity(demo_bundle, "--video", STREET, "--json", "-")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "the bundle and PyTorch are equal" in done.stdout
    document = document_of(done)
    assert document["passed"] is True
    assert document["precision"] == "fp32"
    rows = document["rows"]
    compared = {row["where"] for row in rows}
    assert compared >= vision_graphs(6).keys() | {"dense", *SELECTIONS}
    for row in rows:
        assert row["passed"] is True
        assert row["max_abs"] >= 0
        assert row["limit"] > 0 or row["tensor"] in COUNTED
    chained = {row["tensor"] for row in rows if row["where"] == "layerwise"}
    assert chained == {"hidden", "tokens", "indices"}
    for name in (
        "reference_ms_p50",
        "reuse_ms_p50",
        "torch_reference_ms_p50",
        "torch_reuse_ms_p50",
    ):
        assert document["latency"][name] > 0
    assert document["latency"]["reference_frames"] >= 10
    assert document["latency"]["reuse_frames"] >= 10
    for where in ("keys_00", "layerwise", "prune_dual_anchor"):
        assert re.search(rf"│ {where} .*│ +pass │", done.stdout)
    assert f"frames: 4 of {STREET}\n" in done.stdout


def test_other_weights_than_the_bundles_do_not_equal_it(
    checkpoint_bundle: Exported,
    checkpoints: tuple[Path, Path],
    tmp_path: Path,
    stc_parity: Callable[..., Outcome],
) -> None:
    output = tmp_path / "parity.json"
    root = checkpoint_bundle.bundle.root
    arguments = (root, "--frames", 2, "--json", output)
    done = stc_parity(*arguments, "--checkpoint", checkpoints[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(output.read_text())["passed"] is True

    done = stc_parity(*arguments, "--checkpoint", checkpoints[1])
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    document = json.loads(output.read_text())
    assert document["passed"] is False
    failed = {row["where"] for row in document["rows"] if not row["passed"]}
    assert failed >= {"embed", "keys_00", "update_02", "project", "dense", "layerwise", "shared"}
    # Choosing and pruning have no weights.
    assert not any(where.startswith(("select", "prune")) for where in failed)
    assert "NOT equal" in done.stdout
    assert "FAIL" in done.stdout


def test_a_checkpoint_that_is_needed_and_not_given_is_one_line(
    checkpoint_bundle: Exported, stc_parity: Callable[..., Outcome]
) -> None:
    line = one_line(stc_parity(checkpoint_bundle.bundle.root))
    assert "made of checkpoint first, which was not given; add --checkpoint" in line


def test_a_checkpoint_of_another_model_is_one_line(
    exported: Callable[[str], Exported],
    checkpoints: tuple[Path, Path],
    stc_parity: Callable[..., Outcome],
) -> None:
    other = exported("half").bundle.root
    line = one_line(stc_parity(other, "--checkpoint", checkpoints[0]))
    assert "first: another model than the bundle's" in line
    assert line.endswith("; pass the checkpoint it was exported from")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--frames", "1"], "--frames: got 1, expected at least 2"),
        (["--frames", "100000"], "--frames: got 100000, expected at least 2 and at most 32"),
        (["--video", "no.mp4"], "no.mp4"),
        (["--recompute-ratio", "0"], "--recompute-ratio: got 0.0"),
        (["--budget", "50"], "--budget: got 50, expected at most 49"),
    ],
)
def test_a_mistake_is_one_line(
    demo_bundle: Path, arguments: list[str], told: str, stc_parity: Callable[..., Outcome]
) -> None:
    assert told in one_line(stc_parity(demo_bundle, *arguments))


def test_a_stream_that_is_all_references_is_compared_as_asked(
    demo_bundle: Path, stc_parity: Callable[..., Outcome]
) -> None:
    flags = ("--preset", "off", "--frames", 2, "--vision-only", "--json", "-")
    done = stc_parity(demo_bundle, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    document = document_of(done)
    assert document["settings"]["reference_interval"] == 1
    assert document["latency"]["reuse_frames"] == 0
    assert document["latency"]["reuse_ms_p50"] is None
    assert "frames: 2 of seeded noise\n" in done.stdout


@pytest.mark.parametrize("flag", [["--pruner", "gaussian"], ["--anchor-window", "3"]])
def test_a_pruner_that_nobody_reads_after_is_refused(
    checkpoint_bundle: Exported, flag: list[str], stc_parity: Callable[..., Outcome]
) -> None:
    line = one_line(stc_parity(checkpoint_bundle.bundle.root, *flag))
    assert f"{flag[0]}: requires a language side compared" in line


def test_a_language_side_is_left_out_where_there_is_one_and_nothing_asks_for_it(
    checkpoint_bundle: Exported, demo_bundle: Path, stc_parity: Callable[..., Outcome]
) -> None:
    line = one_line(stc_parity(checkpoint_bundle.bundle.root, "--vision-only"))
    assert "--vision-only: requires a bundle with a language side" in line
    line = one_line(stc_parity(demo_bundle, "--vision-only", "--pruner", "gaussian"))
    assert "--pruner: requires a language side compared" in line


@pytest.mark.parametrize("frames", [1, 3])
def test_a_password_is_not_shown(
    demo_bundle: Path,
    tmp_path: Path,
    frames: int,
    monkeypatch: pytest.MonkeyPatch,
    stc_parity: Callable[..., Outcome],
) -> None:
    clip = str(numbered_clip(tmp_path, frames))
    monkeypatch.setattr(opening, "open_video", lambda source: open_video(clip))
    flags = ("--preset", "off", "--frames", 2, "--vision-only", "--json", "-")
    done = stc_parity(demo_bundle, "--video", "rtsp://viewer:secret@host/street", *flags)
    assert "secret" not in done.stdout + done.stderr
    if frames == 1:
        assert one_line(done).startswith("error: rtsp://***@host/street: 1 frame, expected")
    else:
        assert document_of(done)["frames"] == "2 of rtsp://***@host/street"
