"""`stc-plan` as a user calls it: a document, a table, a picture, and lines that say what is wrong.

One run of the compiler serves most of these tests.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
pytest.importorskip("polygraphy", reason="pip install 'stc[tensorrt-rtx]'")

from stc.bundles.bundle import Bundle
from stc.engines import command as build_command
from stc.engines.build import costs
from stc.engines.build.roofline import Factors
from stc.engines.library.boards import BOARDS
from stc.engines.library.plan import choose_buckets, plan_engines
from stc.runtime.commands import plan as plan_command
from stc.runtime.planning.show import STAGES, three_figures
from stc.runtime.planning.stages import frame_stages, language_stages
from stc.settings import Settings
from tests.as_user import run, standing
from tests.once import Once
from tests.test_calibration import GPU
from tests.vision_cases import Exported

Run = Callable[..., subprocess.CompletedProcess[str]]
FRAMES = ("reference", "reuse_layerwise", "reuse_shared")
LANGUAGE = ("prefill", "decoded_token")


def written(root: Path, bundle: Path) -> None:
    """`root` holds what stc-plan says of the bundle, calibrated by a processor and by a board."""
    ran = run(root, "stc-bench", bundle, "--frames", 2, "--json", "processor.json")
    assert ran.returncode == 0, ran.stderr
    board = json.loads((root / "processor.json").read_text())
    board |= {
        "backend": "tensorrt-rtx",
        "reference_ms_p50": 2.0,
        "reuse_ms_p50": 1.5,
        "gpu": GPU,
    }
    (root / "board.json").write_text(json.dumps(board))
    files = ("--json", "-", "--picture", "plan.svg")
    measured = ("--calibrate", "processor.json", "--calibrate", "board.json", "--host-call-us", 20)
    ran = run(root, "stc-plan", bundle, "--target", "sm86+orin-nano", *files, *measured)
    # On a slow machine it is told how many engines there are.
    told = [line for line in ran.stderr.splitlines() if not line.startswith("engines: ")]
    assert (ran.returncode, told) == (0, [])
    (root / "stdout").write_text(ran.stdout)


@pytest.fixture(scope="module")
def planned(half_demo_bundle: Path, once: Once) -> Path:
    before = standing(half_demo_bundle)
    root = once("planned", lambda root: written(root, half_demo_bundle))
    assert standing(half_demo_bundle) == before
    return root


@pytest.fixture(scope="module")
def document(planned: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((planned / "stdout").read_text().splitlines()[-1])
    return found


@pytest.mark.parametrize("stage", [*FRAMES, *LANGUAGE])
def test_each_stage_has_its_figures(stage: str, document: dict[str, Any]) -> None:
    one = document["targets"]["sm86"][stage]
    assert one["kernels"] > one["engine_runs"] > 0
    assert one["bytes"] > one["weight_bytes"] > 0
    assert one["macs"] > 0
    assert one["scratch_bytes"] > 0
    assert one["attention_fused"] is (one["attentions_fused"] == one["attentions"])
    assert one["estimated_ms"] > 0
    assert min(one["copies"], one["synchronisations"]) >= 1


def test_engines_add_up_to_the_stages_that_run_them(
    document: dict[str, Any], half_demo_bundle: Path
) -> None:
    found = document["targets"]["sm86"]
    engines, reference = found["engines"], found["reference"]
    blocks = Bundle.open(half_demo_bundle).manifest.vision.blocks
    assert engines["reference_00"]["graphs"] == engines["keys_00"]["graphs"] == blocks > 1
    runs = {"embed": 1, "project": 1}
    runs |= dict.fromkeys(("reference_00", "mlp_00-M196"), blocks)
    runs["add"] = blocks
    runs |= {name: 1 for name in engines if name.startswith("prune")}
    for figure in ("kernels", "bytes", "weight_bytes", "macs", "attentions"):
        total = sum(count * engines[name][figure] for name, count in runs.items())
        assert total == reference[figure]
    assert reference["scratch_bytes"] == max(engines[name]["scratch_bytes"] for name in runs)


def test_frames_are_one_graph_and_allocate_nothing(
    document: dict[str, Any], half_demo_bundle: Path
) -> None:
    found = document["targets"]["sm86"]
    blocks = Bundle.open(half_demo_bundle).manifest.vision.blocks
    for stage in FRAMES:
        assert found[stage]["attentions"] == blocks
        asked = {name: found[stage][name] for name in ("enqueues", "synchronisations")}
        assert asked == {"enqueues": 1, "synchronisations": 1}
        assert (found[stage]["allocations"], found[stage]["frees"]) == (0, 0)
    # An MLP runs all tokens of a reference frame, by the engine of a reuse frame.
    assert {"mlp_00-M49", "mlp_00-M196"} <= found["engines"].keys()
    # One block selects for all.
    assert found["reuse_shared"]["kernels"] < found["reuse_layerwise"]["kernels"]
    assert found["reuse_layerwise"]["macs"] < 0.5 * found["reference"]["macs"]
    assert found["prefill"]["macs"] < found["prefill_all"]["macs"]


def test_calls_of_the_decoder_are_one_graph_each_and_allocate_nothing(
    half_demo_bundle: Path,
) -> None:
    bundle = Bundle.open(half_demo_bundle)
    buckets = choose_buckets(bundle.manifest, (0.25,), (14,))
    specs = plan_engines(bundle.manifest, buckets, several_profiles=True)
    stages = language_stages(bundle, specs, kept=14, context=100)
    assert bundle.manifest.language is not None
    blocks = bundle.manifest.language.blocks
    # No frame of the demo's takes more than one call. What its last block attends to nobody reads.
    runs = {
        "prefill": 2 * blocks - 1,
        "prefill_all": 2 * blocks - 1,
        "decoded_token": 2 * blocks + 1,
    }
    assert {name: len(stage.calls) for name, stage in stages.items()} == runs
    for stage in stages.values():
        asked = stage.asked
        assert (asked.enqueues, asked.copies, asked.synchronisations) == (1, 3, 1), stage.name
        assert (asked.allocations, asked.frees) == (0, 0)


def test_a_board_has_times_and_streams_that_follow_from_them(document: dict[str, Any]) -> None:
    settings = document["settings"]
    for target in document["targets"].values():
        assert target["board"] == next(iter(target["boards"]))
        for name, board in target["boards"].items():
            [known] = [one for one in BOARDS if one.name == name]
            assert board["source"] == known.source
            ms = board["estimated_ms"]
            assert set(ms) == {*FRAMES, *LANGUAGE, "prefill_all"} == set(STAGES)
            interval = settings["reference_interval"]
            reuse_ms = (interval - 1) * ms[f"reuse_{settings['selection']}"]
            frame_ms = (ms["reference"] + reuse_ms) / interval + ms["prefill"]
            assert board["frame_ms"] == pytest.approx(frame_ms)
            assert board["streams"]["10"] == int(100 / board["frame_ms"])
            assert set(board["streams"]) == {"1", "2", "5", "10"}
        first = target["boards"][target["board"]]
        assert target["reference"]["estimated_ms"] == first["estimated_ms"]["reference"]


def test_orin_is_listed_as_sm86_and_says_so(document: dict[str, Any]) -> None:
    nano, sm86 = document["targets"]["orin-nano"], document["targets"]["sm86"]
    assert (nano["compiled"], sm86["compiled"]) == ("sm86", "sm86")
    assert nano["reference"]["kernels"] == sm86["reference"]["kernels"]
    assert nano["reference"]["estimated_ms"] != sm86["reference"]["estimated_ms"]


def test_a_boards_times_set_the_factors_and_a_processors_do_not(document: dict[str, Any]) -> None:
    processor, board = document["calibration"]
    assert (processor["used"], board["used"]) == (False, True)
    assert board["board"] == "RTX 3060"
    assert board["machine"] == "NVIDIA GeForce RTX 3060, tensorrt-rtx"
    for name in ("compute_efficiency", "bandwidth_efficiency"):
        assert document["factors"][name] == board[name] != processor[name]
        assert 0 < processor[name] <= 1
    for one in (processor, board):
        assert set(one["stages"]) == {"reference", "reuse_layerwise"}
        for stage in one["stages"].values():
            assert stage["error"] == pytest.approx(stage["fitted_ms"] / stage["measured_ms"] - 1)
        errors = [abs(stage["error"]) for stage in one["stages"].values()]
        assert one["error"] == pytest.approx(sum(errors) / len(errors))


def test_the_picture_needs_nothing_else_and_says_it_is_an_estimate(planned: Path) -> None:
    text = (planned / "plan.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "href" not in text
    assert "url(" not in text
    assert "estimated" in text
    drawn = root.iter("{http://www.w3.org/2000/svg}rect")
    bars = [one for one in drawn if one.get("height") == "11"]
    boards = [board for board in BOARDS if board.target in ("sm86", "orin-nano")]
    assert len(bars) == len(boards) * len(STAGES)
    assert all(board.name in text for board in boards)


def test_a_table_stands_above_the_document(planned: Path, document: dict[str, Any]) -> None:
    *shown, _ = (planned / "stdout").read_text().splitlines()
    table = "\n".join(shown)
    for told in (
        *STAGES.values(),
        "reference_00 x 2",
        "RTX 3050",
        "not measured",
        "20 us a call of the host",
    ):
        assert told in table
    assert "orin-nano, sm86: layers of sm86 by tensorrt-rtx" in table
    assert "of a RTX 3060 (used above)" in table
    assert "of no board of the table, by name, memory and power mode, not used above" in table
    assert document["factors"]["host_call_us"] == 20
    assert max(map(len, shown[: shown.index("")])) <= 80


def test_figures_have_no_exponent() -> None:
    values = (0.0123, 9.876, 12.34, 99.96, 123.4, 1077.2, 25e5)
    shown = ["0.0123", "9.88", "12.3", "100", "123", "1,077", "2,500,000"]
    assert [three_figures(value) for value in values] == shown


def test_factors_are_those_of_the_flags() -> None:
    flags = ["B", "--target", "sm86", "--compute-efficiency", "0.5", "--kernel-us", "0"]
    found = plan_command._factors(plan_command._parse(flags))
    assert found == replace(Factors(), compute_efficiency=0.5, kernel_us=0.0)


def test_stc_build_tells_the_costs_too(
    exported: Callable[[str], Exported], tmp_path: Path, run_main: Run
) -> None:
    bundle = shutil.copytree(exported("half").bundle.root, tmp_path / "bundle")
    built = ("--recompute-ratio", 0.5, "--budget", 3)  # others than the bundle's own
    done = run_main(build_command.main, bundle, "--target", "sm86", "--plan", *built)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    [first] = [n for n, one in enumerate(lines) if one.startswith("sm86: layers listed by tensor")]
    assert lines[first].endswith("; ratio 0.5, 3 tokens kept")
    # What was built is judged first: costs are told of what is there.
    assert any(one.startswith("not compared with ONNX Runtime") for one in lines[:first])
    for kind in ("reference", "reuse"):
        [line] = [one for one in lines if one.startswith(f"  {kind} frame: ")]
        assert re.search(r": \d+ kernels, [\d.]+ MB moved, .* attentions fused; about ", line)
        assert line.endswith("of a RTX 3050, estimated and not measured")


def test_stc_build_counts_a_call_of_the_decoder_at_its_smallest(half_demo_bundle: Path) -> None:
    bundle = Bundle.open(half_demo_bundle)
    buckets = choose_buckets(bundle.manifest, (0.25,), (14,))
    specs = plan_engines(bundle.manifest, buckets, several_profiles=True)
    stages = costs._stages(bundle, specs, bundle.manifest.default_settings)
    assert list(stages) == ["reference frame", "reuse frame", "decoder, S=1024 m=16"]
    assert bundle.manifest.language is not None
    assert len(stages["decoder, S=1024 m=16"]) == 2 * bundle.manifest.language.blocks + 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target", "sm121"], "target sm121: no peak and bandwidth of a board of it is known"),
        (["--target", "sm86", "sm99"], "--target: got 'sm99', expected"),
        (["--target", "this-device"], "--target: got 'this-device', expected orin-agx, "),
        (["--target", "sm86", "--compute-efficiency", "0"], "--compute-efficiency: got 0.0"),
        (["--target", "sm86", "--bandwidth-efficiency", "1.1"], "--bandwidth-efficiency: got 1.1"),
        (["--target", "sm86", "--kernel-us", "-1"], "--kernel-us: got -1.0"),
        (["--target", "sm86", "--host-call-us", "inf"], "--host-call-us: got inf"),
        (
            ["--target", "sm86", "--compute-efficiency", "0.5", "--calibrate", "x.json"],
            "cannot be combined with --calibrate, which finds it; leave one out",
        ),
        (["--target", "sm86", "--calibrate", "missing.json"], "missing.json: cannot be read"),
        (["--target", "sm86", "--context", "32768"], "--context: got 32768"),
        (["--target", "sm86", "--preset", "papier"], "--preset: got 'papier'"),
        (
            ["--target", "sm86", "--picture", "no/folder.svg"],
            "--picture no/folder.svg: cannot be written",
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    flags: list[str],
    said: str,
    half_demo_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Run,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_main(plan_command.main, half_demo_bundle, *flags, "--json", "o.json")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert standing(tmp_path) == {}


def test_float32_graphs_are_refused_with_the_export_command(
    demo_bundle: Path, run_main: Run
) -> None:
    done = run_main(plan_command.main, demo_bundle, "--target", "sm86")
    assert done.returncode == 2
    assert "holds fp32 graphs" in done.stderr
    assert "--precision fp16" in done.stderr


def test_other_settings_change_the_plan(half_demo_bundle: Path) -> None:
    """Fewer tokens recomputed: seen in the stages, without a compiler."""
    bundle = Bundle.open(half_demo_bundle)
    counts = {}
    for ratio in (0.1, 0.5):
        settings = Settings(recompute_ratio=ratio, budget=14)
        buckets = choose_buckets(bundle.manifest, (ratio,), (14,))
        specs = plan_engines(bundle.manifest, buckets, several_profiles=True)
        stage = frame_stages(bundle, specs, settings)["reuse_shared"]
        counts[ratio] = {dict(sizes)["M"] for graph, sizes in stage.calls if graph[:6] == "update"}
    assert counts == {0.1: {19}, 0.5: {98}}
