"""`stc-bench` prints what it measured, and its figures follow from the times."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.manifest import VisionSpec
from stc.runtime.bench.bench import Bench
from stc.runtime.commands import bench as bench_command
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.open import open_video
from stc.settings import Settings
from tests.clips import numbered_clip
from tests.own_process import run_python, script_of
from tests.vision_cases import DATA, made_up, moving_frames, oracle_tower

FIGURES = {
    "reference_ms_p50",
    "reuse_ms_p50",
    "reuse_over_reference",
    "tower_saving",
    "host_overhead_fraction",
    "peak_rss_bytes",
}
AGAINST_TORCH = {
    "torch_reference_ms_p50",
    "torch_reuse_ms_p50",
    "speedup_reference",
    "speedup_reuse",
}


def frame_macs(spec: VisionSpec, recomputed: int) -> int:
    """Multiply-accumulates of a frame: keys of all tokens, the rest of those recomputed."""
    keys = spec.tokens * spec.width**2
    matrices = recomputed * (3 * spec.width**2 + 2 * spec.width * spec.mlp_width)
    attention = 2 * recomputed * spec.tokens * spec.width
    embed = spec.tokens * spec.width * 3 * spec.patch_size**2
    return embed + spec.blocks * (keys + matrices + attention)


def document_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line of stdout."""
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def test_the_last_line_has_every_figure(demo_bundle: Path) -> None:
    arguments = (demo_bundle, "--frames", 8, "--video", DATA / "street.mp4")
    document = document_of(run_python(*script_of("stc-bench"), *arguments))
    assert document.keys() >= FIGURES
    assert not document.keys() & AGAINST_TORCH
    # A busy machine may make a reuse frame the slower one.
    assert all(document[name] > 0 for name in FIGURES - {"tower_saving"})
    saved = (1 - document["reuse_over_reference"]) * 3 / 4
    assert document["tower_saving"] == pytest.approx(saved)
    assert document["frames"] == 8
    assert document["settings"]["reference_interval"] == 4
    assert document["peak_rss_bytes"] > 50e6
    assert 0 < document["host_overhead_fraction"] < 1
    assert document["references_bytes"] == 6 * 3 * 196 * 128 * 4
    assert document["video"] == str(DATA / "street.mp4")


def test_a_password_is_not_in_the_document(
    demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    clip = str(numbered_clip(tmp_path, 2))
    monkeypatch.setattr(opening, "open_video", lambda source: open_video(clip))
    flags = ("--frames", 2, "--video", "rtsp://viewer:secret@host/street")
    document = document_of(run_main(bench_command.main, demo_bundle, *flags))
    assert document["video"] == "rtsp://***@host/street"


def test_pytorch_is_measured_beside_it(
    demo_bundle: Path, run_main: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    arguments = (demo_bundle, "--frames", 3, "--against", "torch")
    settings = ("--reference-interval", 2, "--recompute-ratio", 0.5, "--selection", "layerwise")
    document = document_of(run_main(bench_command.main, *arguments, *settings))
    assert document.keys() >= FIGURES | AGAINST_TORCH
    assert all(document[name] > 0 for name in AGAINST_TORCH)
    assert document["settings"]["recompute_ratio"] == 0.5
    for kind in ("reference", "reuse"):
        torch_ms, bundle_ms = document[f"torch_{kind}_ms_p50"], document[f"{kind}_ms_p50"]
        assert document[f"speedup_{kind}"] == pytest.approx(torch_ms / bundle_ms)


@pytest.mark.parametrize("interval", [1, 4])
def test_figures_follow_from_the_times(interval: int) -> None:
    weights = made_up(image_size=20)
    settings = Settings(reference_interval=interval, recompute_ratio=0.2, budget=2)
    bench = Bench(StreamSession(oracle_tower(weights), settings))
    frames = moving_frames(11)
    for frame in frames[:3]:
        bench.session.push(frame)
    for frame in frames[3:]:
        bench.measure(frame, None)
    references = sum(index % interval == 0 for index in range(3, 11))
    assert tuple(map(len, bench.tower_ms.values())) == (references, 8 - references)

    figures = bench.figures()
    assert figures["frames"] == 8
    assert figures["reference_ms_p50"] == np.median(bench.tower_ms["reference"])
    pushes = [ms for times in bench.push_ms.values() for ms in times]
    pushed_ms = sum(pushes)
    assert figures["push_ms_p50"] == np.median(pushes)
    assert figures["push_ms_p95"] == np.percentile(pushes, 95)
    assert figures["push_reference_ms_p95"] == np.percentile(bench.push_ms["reference"], 95)
    assert figures["engine_share"] == pytest.approx(bench.engine_ms / pushed_ms)
    assert set(figures["stage_share"]) == {"preprocess", "vision", "project", "prune"}
    assert sum(figures["stage_share"].values()) == pytest.approx(1)
    assert figures["host_overhead_fraction"] == pytest.approx(1 - bench.engine_ms / pushed_ms)
    fewer, needed = (frame_macs(weights.spec, count) for count in (5, weights.spec.tokens))
    floor = fewer / needed
    assert figures["reuse_over_reference_floor"] == floor
    assert figures["reference_gmac"] == needed / 1e9
    if interval == 1:
        unknown = ("reuse_ms_p50", "reuse_over_reference", "tower_saving")
        assert [figures[name] for name in unknown] == [None] * 3
    else:
        ratio = np.median(bench.tower_ms["reuse"]) / np.median(bench.tower_ms["reference"])
        assert figures["reuse_over_reference"] == pytest.approx(ratio)
        assert figures["tower_saving"] == pytest.approx((1 - ratio) * 3 / 4)
        assert figures["tower_saving_ceiling"] == pytest.approx((1 - floor) * 3 / 4)
