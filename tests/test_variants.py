"""A variant is an entry of the manifest: one that nobody has heard of runs by `--weights NAME`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import stc.runtime as face
from stc.bundles.bundle import Bundle
from stc.bundles.contents import BundleContents
from stc.manifest import GRAPHS, LANGUAGE_WEIGHTS, MANIFEST
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import run as run_command
from tests.field.resigned import resign
from tests.language_cases import language_case
from tests.test_run_questions import QUESTION, VIDEO

ROOT = Path(__file__).parents[1]
NAME = "doubled"
ASK = ["--video", VIDEO, "--frames", 2, "--ask", QUESTION, "--max-new-tokens", 2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def write_variant(root: Path, name: str = NAME, **fields: Any) -> None:
    """The bundle at `root` has a variant of two graphs: the head, whose table and norm are doubled
    in weights of its own, and the tower's last graph as it is."""
    own = f"{GRAPHS}/{name}.bin"
    weights = np.frombuffer((root / LANGUAGE_WEIGHTS).read_bytes(), np.float32)
    (root / own).write_bytes((2 * weights).tobytes())
    document = json.loads((root / MANIFEST).read_text())
    graphs = {graph: dict(document["graphs"][graph]) for graph in ("head", "project")}
    for graph, entry in graphs.items():
        model = onnx.load(root / entry["file"]["path"], load_external_data=False)
        for tensor in model.graph.initializer if graph == "head" else ():
            for place in tensor.external_data:
                place.value = f"{name}.bin" if place.key == "location" else place.value
        path = f"{GRAPHS}/{graph}_{name}.onnx"
        (root / path).write_bytes(model.SerializeToString())
        entry["file"] = {**entry["file"], "path": path}
    document["files"].append({**document["files"][0], "path": own})
    document["variants"][name] = {
        "base": "fused",
        "graphs": graphs,
        "weights": own,
        "backends": ["onnxruntime-cpu"],
        **fields,
    }
    (root / MANIFEST).write_text(json.dumps(document))
    resign(root)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("variants") / "bundle"
    shutil.copytree(language_case(int4=32).bundle.root, root)
    write_variant(root)
    return root


def test_a_made_up_variant_answers_by_its_name(bundle: Path) -> None:
    """Four times the logits: of its own head over the bundle's other graphs."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    logits = []
    for weights in (None, NAME):
        with face.open(bundle, weights=weights) as stream:
            stream.push(picture)
            logits.append(stream.ask(QUESTION, max_new_tokens=2).logits)
    assert np.allclose(logits[1], 4 * logits[0], rtol=1e-4, atol=1e-4)
    assert np.abs(logits[0]).max() > 0.1


def test_a_made_up_variant_runs_by_every_command(bundle: Path, run_main: Run) -> None:
    chosen = ["--weights", NAME]
    done = run_main(run_command.main, bundle, *ASK, *chosen, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["language"]["questions_asked"] == 1
    # It has a graph of the tower, which runs without questions too.
    done = run_main(run_command.main, bundle, *ASK[:4], *chosen)
    assert done.returncode == 0, done.stderr

    measured = ["--prefill", "--frames", 1, "--context", 20, "--budget", 1]
    done = run_main(bench_command.main, bundle, *measured, *chosen, "--against", "int4")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["weights"], figures["int4_group"]) == (NAME, 32)
    assert figures["int4_decode_ms_p50"] > 0
    done = run_main(bench_command.main, bundle, *measured, "--against", NAME)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["weights"], figures["int4_group"]) == (None, None)
    assert figures[f"{NAME}_decode_ms_p50"] > 0
    assert figures[f"{NAME}_decode_speedup"] > 0
    done = run_main(bench_command.main, bundle, "--frames", 4, *chosen)
    assert json.loads(done.stdout.splitlines()[-1])["weights"] == NAME

    checkpoint = language_case(int4=32).checkpoint
    done = run_main(parity_command.main, bundle, "--checkpoint", checkpoint, *chosen, "--json", "-")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    told = {row["tensor"]: row["max_abs"] for row in rows if row["where"] == f"{NAME} decoder"}
    assert told["logits"] > 0.1


def test_its_graphs_and_weights_are_verified_and_the_bundles_own(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    own = {f"{GRAPHS}/{file}" for file in ("head_doubled.onnx", "project_doubled.onnx")}
    assert own | {f"{GRAPHS}/{NAME}.bin"} <= set(opened.files.sizes)
    assert own <= BundleContents(bundle).listed
    backend = "onnxruntime-cpu"
    table = opened.table(backend, NAME)
    chosen = {
        graph: next((name for name, one in opened.manifest.variants.items() if one is variant), "")
        for graph, (_, variant) in table.items()
    }
    assert chosen["head"] == chosen["project"] == NAME
    assert (chosen["attend_00"], chosen["qkv_00"], chosen["embed"]) == ("fused", "", "")
    assert {variant for _, variant in opened.table("tensorrt").values()} == {None}
    file = opened.graph("head", backend, NAME)
    assert file.names == (f"{GRAPHS}/head_doubled.onnx", f"{GRAPHS}/{NAME}.bin")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "int8"], "weights int8: {} has int4 and doubled; name one"),
        (
            ["--weights", "fused"],
            "weights fused: are what it runs by itself wherever it can; name none",
        ),
        (
            ["--weights", NAME, "--backend", "tensorrt", "--prefill"],
            f"weights {NAME}: tensorrt does not run them, expected onnxruntime-cpu; choose one",
        ),
        (["--int4"], "weights int4: none of its graphs is run; leave it out, or run the side"),
        (["--against", NAME], f"--against {NAME}: names weights, which requires --prefill"),
        (
            ["--prefill", "--weights", "int4", "--against", "int4"],
            "--against int4: names weights, which requires",
        ),
        (["--prefill", "--against", "int8"], "weights int8: {} has int4 and doubled"),
    ],
)
def test_weights_that_cannot_be_run_are_refused_in_one_line(
    bundle: Path, words: list[str], told: str, run_main: Run
) -> None:
    done = run_main(bench_command.main, bundle, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {told.format(bundle)}")
    assert done.stderr.count("\n") == 1


def test_what_a_bundle_lacks_is_told_with_the_command_that_adds_it(run_main: Run) -> None:
    """And what it has stays in the command that replaces it."""
    case = language_case()
    done = run_main(run_command.main, case.bundle.root, *ASK, "--int4")
    assert done.returncode == 2
    command = "stc-export --model llava-ov --checkpoint checkpoint --precision fp32 --preset off"
    ends = f"--output {case.bundle.root} --force\n"
    assert f"has none but its own; export again with: {command} --int4 32 {ends}" in done.stderr
    assert " --int4 32 --preset off --output" in language_case(int4=32).bundle.export_again()
    assert " --int4" not in case.bundle.export_again()


def test_both_names_of_weights_at_once_are_refused(bundle: Path, run_main: Run) -> None:
    done = run_main(run_command.main, bundle, *ASK, "--int4", "--weights", NAME)
    assert done.returncode == 2
    assert "not allowed with argument --int4" in done.stderr


@pytest.mark.parametrize(
    "fields",
    [
        {"base": "unheard-of"},
        {"base": NAME},
        {"weights": "graphs/unlisted.bin"},
        {"base": "narrow", "backends": ["onnxruntime-cpu", "onnxruntime-cuda"]},
    ],
)
def test_a_variant_that_does_not_fit_is_refused_on_opening(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(language_case(int4=32).bundle.root, tmp_path / "bundle"))
    write_variant(root, "narrow")
    Bundle.open(root)
    write_variant(root, **fields)
    told = "graphs/unlisted.bin" if "weights" in fields else f"variants.{NAME}: its base is no"
    with pytest.raises(face.BundleError, match=re.escape(told)):
        Bundle.open(root)


@pytest.mark.parametrize("name", ["[/x]", "torch", "a b", "--json", ""])
def test_a_variant_is_called_as_a_flag_may_name_it(name: str, tmp_path: Path) -> None:
    """Markup of a terminal, or the name of something else, would not be told as what it is."""
    root = Path(shutil.copytree(language_case(int4=32).bundle.root, tmp_path / "bundle"))
    document = json.loads((root / "manifest.json").read_text())
    document["variants"][name] = document["variants"]["int4"]
    (root / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(face.BundleError, match="variants"):
        Bundle.open(root)


def test_the_tower_has_no_operator_of_onnx_runtimes_own(tmp_path: Path) -> None:
    root = Path(shutil.copytree(language_case(int4=32).bundle.root, tmp_path / "bundle"))
    document = json.loads((root / "manifest.json").read_text())
    fused = document["variants"]["fused"]
    fused["graphs"]["project"] = document["graphs"]["project"] | {
        "file": fused["graphs"]["attend_00"]["file"]
    }
    (root / "manifest.json").write_text(json.dumps(document))
    bundle = Bundle.open(root)
    assert bundle.graph("attend_00", "onnxruntime-cpu")
    with pytest.raises(face.BundleError, match=r"has operators com\.microsoft"):
        bundle.graph("project", "onnxruntime-cpu")


def test_no_variant_is_a_special_case_where_bundles_are_run() -> None:
    """What stc-export makes on request is named once; the runtime knows names from the manifest.
    The compiler's fused kernels are another thing."""
    named = []
    for folder in ("stc", "engines", "runtime"):
        # No links: `stc/export` is where variants are made.
        for above, _, files in os.walk(ROOT / folder):
            for file in (Path(above, name) for name in files if name.endswith(".py")):
                lines = file.read_text().splitlines()
                named += [
                    line
                    for line in lines
                    if re.search(r"[\"']fused[\"']|\bfused_|int4", line)
                    and "attention" not in line.lower()
                ]
    assert [line.partition(":")[0] for line in named] == ["ON_REQUEST"]
