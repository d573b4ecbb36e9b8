"""Every graph through a real TensorRT compiler: TensorRT-RTX builds without a GPU."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
pytest.importorskip("polygraphy", reason="pip install 'stc[tensorrt-rtx]'")

from stc.bundles.bundle import Bundle, file_entry
from stc.contracts import TEXT_EMBED
from stc.engines import command as build_command
from stc.engines.build.attention import widen_attention
from stc.engines.build.build import BuildPlan, plan_build, run_build
from stc.engines.build.builders import BuildProgress, Phase
from stc.engines.build.compile import Recipe, compile_engine
from stc.engines.library.library import LADDER, EngineLibrary
from stc.engines.library.plan import EngineSpec, choose_buckets, plan_engines
from stc.engines.library.targets import TARGETS, Flavour, Target, load_tensorrt, parse_targets
from stc.errors import EngineError
from stc.manifest import GRAPHS, MANIFEST, WEIGHTS
from stc.settings import Settings
from stc.shell.command import Console
from tests.graph_files import graph_file
from tests.own_process import script_of
from tests.vision_cases import Exported

ROOT = Path(__file__).parents[1]
THREE = "sm86+sm89+sm120"
RTX: Flavour = "tensorrt-rtx"


class Watcher(BuildProgress):
    """Remembers what a build reported."""

    def __init__(self) -> None:
        super().__init__(0, Console(file=io.StringIO()))
        self.taken: list[str] = []
        self.phases: list[tuple[str, Phase]] = []
        self.done: list[str] = []

    def began(self, engine: str) -> None:
        self.taken.append(engine)

    def phase(self, engine: str, phase: Phase) -> None:
        self.phases.append((engine, phase))

    def built(self, engine: str) -> None:
        self.done.append(engine)


def copied(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    return target


@pytest.fixture(scope="module")
def built(half_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle with engines for three GPUs, built by one call."""
    bundle = copied(half_demo_bundle, tmp_path_factory.mktemp("built") / "bundle")
    assert build_command.main([str(bundle), "--target", THREE, "--jobs", "2"]) == 0
    return bundle


@pytest.fixture
def small_bundle(exported: Callable[[str], Exported], tmp_path: Path) -> Path:
    """A copy of a bundle of two blocks in float16."""
    return copied(exported("half").bundle.root, tmp_path / "bundle")


def library_at(bundle: Path, targets: str) -> EngineLibrary:
    return EngineLibrary(bundle / "engines" / targets)


def planned(bundle: Path, targets: str) -> BuildPlan:
    """What a build with the command's defaults would have to do."""
    opened = Bundle.open(bundle)
    buckets = choose_buckets(opened.manifest, (0.25, 0.5), None)
    specs = plan_engines(opened.manifest, buckets, several_profiles=True)
    return plan_build(opened, specs, load_tensorrt(RTX), parse_targets(targets))


def recipe(bundle: Path, spec: EngineSpec, target: Target = TARGETS["sm86"]) -> Recipe:
    opened = Bundle.open(bundle)
    graph = opened.manifest.graphs[spec.graph]
    return Recipe(spec=spec, path=graph_file(opened, spec.graph), graph=graph, targets=(target,))


def engine_of(recipe: Recipe) -> memoryview:
    return compile_engine(load_tensorrt(RTX), recipe, lambda *_: None)


def test_every_graph_of_the_demo_compiles_for_three_gpus_in_one_call(built: Path) -> None:
    library = library_at(built, THREE)
    entries = library.entries()
    graphs = Bundle.open(built).manifest.graphs
    # The host looks text tokens up.
    assert {entry.stamp.graph for entry in entries.values()} == set(graphs) - {TEXT_EMBED}
    for name, entry in entries.items():
        assert entry.stamp.targets == ("sm86", "sm89", "sm120")
        assert len(library.read(entry)) == (library.folder / name).stat().st_size > 10_000
    assert planned(built, THREE).missing == {}


def test_a_second_build_changes_nothing_and_says_so(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def times() -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in library_at(built, THREE).folder.iterdir()}

    before = times()
    assert build_command.main([str(built), "--target", THREE]) == 0
    assert "engines are there already" in capsys.readouterr().out
    assert times() == before


def test_only_missing_and_cut_engines_are_built_again(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copied(built, tmp_path / "bundle")
    library = library_at(bundle, THREE)
    before = library.entries()
    (library.folder / "embed.tensorrt-rtx.engine").unlink()
    (library.folder / "keys_01.tensorrt-rtx.engine").write_bytes(b"cut")
    assert set(planned(bundle, THREE).missing) == {
        "embed.tensorrt-rtx.engine",
        "keys_01.tensorrt-rtx.engine",
    }
    assert build_command.main([str(bundle), "--target", THREE]) == 0
    assert f"2 engines built, {len(before) - 2} were there" in capsys.readouterr().out
    assert all(library.read(entry) for entry in library.entries().values())


def test_a_build_finishes_every_engine_it_takes_up_and_tells_the_builders_phases(
    small_bundle: Path,
) -> None:
    opened, targets = Bundle.open(small_bundle), parse_targets("sm89")
    watcher, plan = Watcher(), planned(small_bundle, "sm89")
    figures = run_build(opened, plan, RTX, targets, watcher, workers=2)
    assert sorted(watcher.taken) == sorted(watcher.done)
    assert figures.engines == len(watcher.done) == len(plan.missing)
    assert {engine for engine, _ in watcher.phases} <= set(watcher.taken)
    assert {"Building engine"} <= {phase.name for _, phase in watcher.phases}
    assert all(0 <= phase.done <= phase.steps for _, phase in watcher.phases)
    # With two builders one stores its file while the other's is put into the list.
    assert planned(small_bundle, "sm89").missing == {}


def test_a_build_goes_on_where_it_was_stopped(small_bundle: Path) -> None:
    """Killed first, interrupted then, and finished by a third call."""
    command = [sys.executable, *script_of("stc-build"), str(small_bundle)]
    command += ["--target", "sm86", "--jobs", "1"]
    library = library_at(small_bundle, "sm86")
    interrupted = "interrupted; finished engines are kept, run it again to go on"
    goes_on: list[str] = []
    for stop, code, said in ((signal.SIGKILL, -9, []), (signal.SIGINT, 130, [interrupted])):
        before = library.entries()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while len(library.entries()) < len(before) + 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(stop)
        _, error = process.communicate()
        assert process.returncode == code
        # The memory the build needs is told first, on a slow machine how many engines there are.
        told = [line for line in error.splitlines() if "GiB" not in line]
        assert [line for line in told if not line.startswith("engines: ")] == goes_on + said
        kept, missing = library.entries(), planned(small_bundle, "sm86").missing
        assert all(kept[name] == entry for name, entry in before.items())
        goes_on = [f"goes on: {len(kept)} of {len(kept) + len(missing)} engines are there"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f" {len(kept)} were there" in again.stdout
    assert goes_on[0] in again.stderr.splitlines()
    assert all(library.entries()[name] == entry for name, entry in kept.items())
    assert planned(small_bundle, "sm86").missing == {}


def test_an_altered_graph_is_refused(
    half_demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copied(half_demo_bundle, tmp_path / "bundle")
    graph = bundle / GRAPHS / "embed.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert build_command.main([str(bundle), "--target", THREE]) == 2
    *needs, error = capsys.readouterr().err.splitlines()
    assert "embed.onnx: was altered" in error
    assert all(": needs " in line for line in needs)
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("changed", ["files", "graphs"])
def test_engines_of_other_weights_or_graphs_are_stale(
    built: Path, tmp_path: Path, changed: str
) -> None:
    bundle = copied(built, tmp_path / "bundle")
    present = planned(bundle, THREE).present
    path = WEIGHTS if changed == "files" else f"{GRAPHS}/embed.onnx"
    content = (bundle / path).read_bytes()
    (bundle / path).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    manifest = json.loads((bundle / MANIFEST).read_text())
    entries = manifest["files"]
    if changed == "graphs":
        entries = [graph["file"] for graph in manifest["graphs"].values()]
    (entry,) = (entry for entry in entries if entry["path"] == path)
    entry.update(file_entry(bundle, path).model_dump())
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    plan = planned(bundle, THREE)
    assert len(plan.missing) == (present if changed == "files" else 1)


def test_another_version_makes_engines_stale(built: Path) -> None:
    opened, tensorrt = Bundle.open(built), load_tensorrt(RTX)
    tensorrt.version = "1.8.0"
    specs = plan_engines(
        opened.manifest, choose_buckets(opened.manifest, (0.25, 0.5), None), several_profiles=True
    )
    assert plan_build(opened, specs, tensorrt, parse_targets(THREE)).present == 0


def test_a_graph_tensorrt_cannot_read_is_one_line_with_its_reason(
    half_demo_bundle: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "embed.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"embed: tensorrt-rtx .* cannot build it \(.+\)") as got:
        engine_of(replace(recipe(half_demo_bundle, EngineSpec("embed", ({},))), path=broken))
    assert "\n" not in str(got.value)


def test_a_failed_build_names_its_engine_and_keeps_the_others(small_bundle: Path) -> None:
    plan = planned(small_bundle, "sm86")
    failing = next(name for name in plan.missing if name.startswith("select"))
    spec, stamp = plan.missing[failing]
    plan.missing[failing] = (replace(spec, baked=(spec.baked or 0) + 1), stamp)
    opened, targets = Bundle.open(small_bundle), parse_targets("sm86")
    with pytest.raises(EngineError, match=r"^select\S*: .*count"):
        run_build(opened, plan, RTX, targets, Watcher(), workers=1)
    entries = library_at(small_bundle, "sm86").entries()
    assert entries
    assert failing not in entries


def test_a_count_is_baked_and_a_wrong_one_refused(half_demo_bundle: Path) -> None:
    assert engine_of(recipe(half_demo_bundle, EngineSpec("select", ({"M": 7},), 7)))
    refusal = r"select: indices has shape \(8,\) at count 8, .*; this version takes no count: use"
    with pytest.raises(EngineError, match=refusal):
        engine_of(recipe(half_demo_bundle, EngineSpec("select", ({"M": 7},), 8)))


@pytest.mark.parametrize("capability", [(8, 7), (9, 0)])
def test_a_capability_the_version_does_not_know_is_refused(
    half_demo_bundle: Path, capability: tuple[int, int]
) -> None:
    target = replace(TARGETS["sm86"], name="other", compute_capability=capability)
    with pytest.raises(EngineError, match=r"target other: compute capability SM\d+ is not one of"):
        engine_of(recipe(half_demo_bundle, EngineSpec("embed", ({},)), target))


def test_a_capability_is_refused_though_the_call_returns_false_and_does_not_raise(
    half_demo_bundle: Path,
) -> None:
    class NoCapability(Target):
        sm = "NONE"

    target = NoCapability(name="other", compute_capability=(0, 0), memory_bytes=1)
    with pytest.raises(EngineError, match="target other: compute capability NONE is not one of"):
        engine_of(recipe(half_demo_bundle, EngineSpec("embed", ({},)), target))


@pytest.mark.parametrize(
    ("spec", "outputs"),
    [
        (EngineSpec("reference_00", ({},)), 3),
        (EngineSpec("update_00", ({"M": 49},)), 2),
        (EngineSpec("attend_00", ({"m": 16, "S": 1024},)), 1),
    ],
    ids=["reference", "update", "attend"],
)
def test_attention_widens_to_float32_and_still_compiles(
    half_demo_bundle: Path, spec: EngineSpec, outputs: int
) -> None:
    trt = load_tensorrt(RTX).module
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    plain = recipe(half_demo_bundle, spec)
    assert parser.parse_from_file(str(plain.path))
    assert widen_attention(trt, network) == 2  # query x key and attention x value
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    products = [layer for layer in layers if layer.type == trt.LayerType.MATRIX_MULTIPLY]
    wide = [layer for layer in products if layer.get_output(0).dtype == trt.DataType.FLOAT]
    assert len(wide) == 2
    dtypes = [network.get_output(index).dtype for index in range(network.num_outputs)]
    assert dtypes == [trt.DataType.HALF] * outputs
    engines = {bytes(engine_of(replace(plain, attention=rung))) for rung in LADDER}
    assert len(engines) == len(LADDER)


@pytest.fixture(scope="module")
def full_size_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full-size architecture with one block of each kind and a small vocabulary, float16."""
    from stc.export.bundle_export import export_bundle
    from stc.export.made_up.synthetic import random_checkpoint

    whole = random_checkpoint()
    assert whole.decoder is not None
    weights = replace(
        whole,
        spec=whole.spec.model_copy(update={"blocks": 1}),
        decoder=whole.decoder.model_copy(
            update={
                "blocks": 1,
                "vocabulary": 1000,
                "video_token_id": 999,
                "stop_token_ids": (998,),
            }
        ),
    )
    output = tmp_path_factory.mktemp("full-size") / "bundle"
    export_bundle(
        weights,
        output,
        language=weights.language(),
        model="llava-ov",
        kind="random",
        precision="fp16",
        settings=Settings(),
        force=False,
        tick=lambda _: None,
    )
    return output


@pytest.mark.slow
def test_one_full_size_block_of_each_kind_compiles_for_three_gpus_in_one_call(
    full_size_block: Path,
) -> None:
    assert build_command.main([str(full_size_block), "--target", THREE]) == 0
    entries = library_at(full_size_block, THREE).entries()
    graphs = {entry.stamp.graph for entry in entries.values()}
    assert {
        "embed",
        "keys_00",
        "compare",
        "select",
        "reference_00",
        "update_00",
        "mlp_00",
        "place",
        "add",
        "merge",
        "project",
        "prune_dual_anchor",
    } <= graphs
    assert {"qkv_00", "attend_00"} <= graphs
    # All sizes of M share one copy of the weights: 8 and 20 MB of float16.
    for name, most in (("update_00-M182-M364", 13e6), ("mlp_00-M182-M364-M729", 24e6)):
        assert entries[f"{name}.tensorrt-rtx.engine"].file.size_bytes < most
