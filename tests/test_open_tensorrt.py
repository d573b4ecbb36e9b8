"""Engines are used only on the GPU, by the version and for the graphs they were built for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.contents import LIST
from stc.engines.gpu.cuda import Cuda, DeviceFacts, device_facts
from stc.engines.library.library import (
    Acceptance,
    Chain,
    EngineEntry,
    EngineLibrary,
    Stamp,
    library_of,
    weights_sha256,
)
from stc.engines.library.plan import Sizes
from stc.engines.library.targets import GIB, TARGETS, Flavour, TensorRt
from stc.engines.open_tensorrt import built_target, check_memory, find_engines
from stc.errors import DeviceError, EngineError
from stc.manifest import FileEntry
from stc.method.graphs import EMBED, SELECT
from tests.fake_cuda import FakeCuda
from tests.tiny_bundle import write_bundle

SM89 = TARGETS["sm89"]
STRAYS = Acceptance(passed=False, min_cosine=0.91, outputs={"hidden": 0.91}, device="here")


def installed(version: str = "1.7.1", flavour: Flavour = "tensorrt-rtx") -> TensorRt:
    return TensorRt(flavour, SimpleNamespace(__version__=version))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_bundle(tmp_path / "bundle"))


def build(
    bundle: Bundle,
    targets: str = "sm89",
    *,
    acceptance: Acceptance | None = None,
    workspace_bytes: int | None = None,
    **changed: Any,
) -> EngineLibrary:
    """Engines of both graphs in the library of `targets`, their stamps with fields `changed`."""
    library = library_of(bundle, targets)
    entries = library.entries()
    for graph in (EMBED, SELECT):
        stamp = Stamp(
            **{
                "graph": graph,
                "graph_sha256": bundle.manifest.graphs[graph].file.sha256,
                "weights_sha256": weights_sha256(bundle),
                "flavour": "tensorrt-rtx",
                "version": "1.7.1",
                "targets": tuple(targets.split("+")),
                "precision": "fp32",
                "profiles": ({},),
                "baked": None,
                **changed,
            }
        )
        file = library.store(f"{graph}.{stamp.flavour}.engine", memoryview(graph.encode() * 50))
        entries[file.path] = EngineEntry(
            stamp=stamp,
            file=file,
            build_s=1.0,
            acceptance=acceptance,
            workspace_bytes=workspace_bytes,
        )
    library.write(entries)
    return library


def recomputed(size: int) -> Sizes:
    return {"M": size}


def chunk(size: int) -> Sizes:
    return {"m": size, "S": 4096}


def refused(bundle: Bundle, tensorrt: TensorRt | None = None, fixed_by: str = "this-device") -> str:
    with pytest.raises(EngineError) as caught:
        find_engines(bundle, tensorrt or installed(), SM89, language=True)
    line = str(caught.value)
    assert "\n" not in line
    assert f"stc-build {bundle.root} --target {fixed_by} --backend" in line
    return line


def test_engines_of_this_gpu_are_found_by_graph(bundle: Bundle) -> None:
    library = build(bundle)
    found, entries = find_engines(bundle, installed(), SM89, language=True)
    assert found.folder == library.folder
    assert {graph: len(some) for graph, some in entries.items()} == {EMBED: 1, SELECT: 1}


def test_engines_built_for_several_gpus_are_found_on_each(bundle: Bundle) -> None:
    build(bundle, "sm86+sm89")
    assert find_engines(bundle, installed(), SM89, language=True)[0].folder.name == "sm86+sm89"


def test_a_bundle_without_engines_is_refused(bundle: Bundle) -> None:
    assert "has no engines, expected engines for sm89" in refused(bundle)


def test_engines_of_another_gpu_are_refused(bundle: Bundle) -> None:
    build(bundle, "orin-nano", flavour="tensorrt")
    build(bundle, "sm86")
    assert "has engines for orin-nano, sm86, expected sm89, this GPU" in refused(bundle)


def test_engines_of_the_other_flavour_are_not_taken(bundle: Bundle) -> None:
    build(bundle)
    assert "has no engines of tensorrt;" in refused(
        bundle, installed("10.16.2", "tensorrt"), "sm89"
    )


def test_engines_of_another_version_are_refused(bundle: Bundle) -> None:
    build(bundle)
    line = refused(bundle, installed("1.8.0"), "sm89")
    assert "built by tensorrt-rtx 1.7.1, expected 1.8.0, which is installed" in line


@pytest.mark.parametrize(
    "changed",
    [{"graph_sha256": "0" * 64}, {"weights_sha256": "0" * 64}, {"precision": "fp16"}],
)
def test_engines_of_other_graphs_or_weights_are_refused(
    bundle: Bundle, changed: dict[str, Any]
) -> None:
    build(bundle, **changed)
    line = refused(bundle, fixed_by="sm89")
    assert "built from other graphs or weights than these" in line


def test_a_missing_engine_is_refused(bundle: Bundle) -> None:
    library = build(bundle)
    (library.folder / f"{EMBED}.tensorrt-rtx.engine").unlink()
    line = refused(bundle, fixed_by="sm89")
    assert f"{EMBED}.tensorrt-rtx.engine: is missing or cut short" in line


def test_engines_that_stray_from_onnx_runtime_are_refused(bundle: Bundle) -> None:
    build(bundle, acceptance=STRAYS)
    said = r"deviates from ONNX Runtime on this device, cosine 0\.9100; no build fixes it: use"
    with pytest.raises(EngineError, match=said):
        find_engines(bundle, installed(), SM89, language=True)


def test_what_strayed_on_another_gpu_was_not_compared_here(bundle: Bundle) -> None:
    library = build(bundle, acceptance=STRAYS)
    library.write(library.entries(), {"tensorrt-rtx": Chain(cosine=0.5, device="here")})
    find_engines(bundle, installed(), SM89, language=True, device="another GPU")
    with pytest.raises(EngineError, match="deviates from ONNX Runtime on this device"):
        find_engines(bundle, installed(), SM89, language=True, device="here")


def test_a_tower_that_strays_on_this_gpu_is_refused(bundle: Bundle) -> None:
    library = build(bundle)
    library.write(library.entries(), {"tensorrt-rtx": Chain(cosine=0.5, device="here")})
    find_engines(bundle, installed(), SM89, language=True, device="another GPU")
    with pytest.raises(EngineError, match=r"the tower deviates .* cosine 0\.5000"):
        find_engines(bundle, installed(), SM89, language=True, device="here")


def test_engines_compared_here_are_preferred_to_those_of_another_gpu(bundle: Bundle) -> None:
    passed = Acceptance(passed=True, min_cosine=1.0, outputs={}, device="another GPU")
    build(bundle, "sm86+sm89", acceptance=passed)
    build(bundle, "sm89", acceptance=passed.model_copy(update={"device": "here"}))
    library, _ = find_engines(bundle, installed(), SM89, language=True, device="here")
    assert library.folder.name == "sm89"


def test_engines_without_a_pruner_that_strays_are_preferred(bundle: Bundle) -> None:
    passed = STRAYS.model_copy(update={"passed": True})
    graph = "prune_gaussian"
    for targets, judged in (("sm86+sm89", STRAYS), ("sm89", passed)):
        library = build(bundle, targets, acceptance=passed)
        name, entry = next(iter(library.entries().items()))
        stamp = entry.stamp.model_copy(
            update={"graph": graph, "graph_sha256": bundle.manifest.graphs[graph].file.sha256}
        )
        pruner = entry.model_copy(update={"stamp": stamp, "acceptance": judged})
        library.write({**library.entries(), f"pruner-{name}": pruner})
    found, _ = find_engines(bundle, installed(), SM89, language=True, device="here")
    assert found.folder.name == "sm89"


def test_a_library_that_can_be_used_is_preferred_to_one_that_cannot(bundle: Bundle) -> None:
    build(bundle, "sm80+sm89", version="1.6.0")
    build(bundle, "sm89")
    assert find_engines(bundle, installed(), SM89, language=True)[0].folder.name == "sm89"


def test_engines_that_were_compared_are_preferred_to_those_that_were_not(bundle: Bundle) -> None:
    build(bundle, "sm86+sm89")
    build(bundle, "sm89", acceptance=STRAYS.model_copy(update={"passed": True}))
    assert find_engines(bundle, installed(), SM89, language=True)[0].folder.name == "sm89"


def test_the_fix_of_a_library_names_the_targets_it_was_built_for(bundle: Bundle) -> None:
    build(bundle, "sm86+sm89", version="1.6.0")
    assert "built by tensorrt-rtx 1.6.0" in refused(bundle, fixed_by="sm86+sm89")


def test_engines_in_a_folder_of_another_name_are_still_those_of_their_stamps(
    bundle: Bundle,
) -> None:
    folder = build(bundle, "sm86").folder
    folder.rename(folder.with_name("sm89"))
    assert "has engines for sm86, expected sm89, this GPU" in refused(bundle)


def test_a_library_that_cannot_be_read_does_not_hide_another(bundle: Bundle) -> None:
    (build(bundle, "sm80").folder / LIST).write_text("{")
    build(bundle, "sm89")
    assert find_engines(bundle, installed(), SM89, language=True)[0].folder.name == "sm89"


def test_a_stale_engine_of_other_sizes_does_not_stand_in_the_way(bundle: Bundle) -> None:
    library = build(bundle)
    entries = library.entries()
    old = entries[f"{SELECT}.tensorrt-rtx.engine"]
    stamp = old.stamp.model_copy(update={"version": "1.6.0", "profiles": ({"M": 2},)})
    library.write({"old.engine": old.model_copy(update={"stamp": stamp}), **entries})
    _, found = find_engines(bundle, installed(), SM89, language=True)
    assert [entry.stamp.version for entry in found[SELECT]] == ["1.7.1"]


def test_on_an_unknown_board_the_only_engines_of_its_kind_are_taken(bundle: Bundle) -> None:
    board = DeviceFacts("Orin", (8, 7), 8 << 30, 8 << 30, True, "a carrier of ours")
    fix = "name its module: stc-build BUNDLE --target orin-agx or orin-nx or orin-nano"
    build(bundle, "sm89")
    with pytest.raises(EngineError, match=fix):
        built_target(bundle, board)
    build(bundle, "orin-nx")
    assert built_target(bundle, board) is TARGETS["orin-nx"]
    build(bundle, "orin-nano")
    with pytest.raises(EngineError, match=fix):
        built_target(bundle, board)


def test_engines_that_do_not_fit_are_refused_before_they_are_loaded(bundle: Bundle) -> None:
    build(bundle)
    _, entries = find_engines(bundle, installed(), SM89, language=True)
    facts = DeviceFacts("GPU", (8, 9), 2 << 30, 1 << 30, False, "")
    assert check_memory(bundle, entries, facts, context=0, streams=1).startswith("GPU: needs 0.3")
    with pytest.raises(EngineError, match=r"GPU: needs .* what is free"):
        small = DeviceFacts("GPU", (8, 9), 2 << 30, 1 << 20, False, "")
        check_memory(bundle, entries, small, context=0, streams=1)


def sized(graph: str, *files: tuple[Any, ...]) -> list[EngineEntry]:
    """Engines of `graph`: the GiB of each file and the sizes it holds."""
    return [
        EngineEntry(
            stamp=Stamp(
                graph=graph,
                graph_sha256="0" * 64,
                weights_sha256="0" * 64,
                flavour="tensorrt",
                version="10.3.0",
                targets=("sm89",),
                precision="fp16",
                profiles=tuple(profiles),
                baked=None,
            ),
            file=FileEntry(path=f"{graph}-{number}", sha256="0" * 64, size_bytes=int(gib * GIB)),
            build_s=1.0,
        )
        for number, (gib, *profiles) in enumerate(files)
    ]


@pytest.mark.parametrize(
    ("graph", "files", "gib"),
    [
        # One ratio of two builds.
        (
            "update_00",
            [(2, recomputed(6), recomputed(12)), (1, recomputed(3))],
            2,
        ),
        # Of one engine per size, the larger of two ratios.
        ("update_00", [(2, recomputed(6)), (4, recomputed(12))], 4),
        # A size that two builds have is loaded once.
        ("update_00", [(2, recomputed(6)), (3, recomputed(6), recomputed(12))], 3),
        ("select", [(1, recomputed(6)), (3, recomputed(12)), (2, recomputed(3))], 3),
        ("prune_dual_anchor", [(1, {"k": 2}), (3, {"k": 4})], 3),
        ("keys_00", [(3, {})], 3),
        # A language model runs every size there is.
        ("qkv_00", [(1, {"m": 16}), (2, {"m": 64})], 3),
        ("attend_00", [(4, chunk(16), chunk(64)), (3, chunk(64))], 4),
    ],
)
def test_engines_count_that_a_stream_has_loaded_at_once(
    bundle: Bundle, graph: str, files: list[tuple[Any, ...]], gib: int
) -> None:
    entries = {graph: sized(graph, *files), "project": sized("project", (8, {}))}
    facts = DeviceFacts("GPU", (8, 9), 99 * GIB, 99 * GIB, False, "")
    line = check_memory(bundle, entries, facts, context=0, streams=1)
    assert f" weights {gib + 8}.00, " in line


def test_scratch_memory_that_engines_told_of_replaces_the_estimate(bundle: Bundle) -> None:
    build(bundle, workspace_bytes=1 << 30)
    _, entries = find_engines(bundle, installed(), SM89, language=True)
    facts = DeviceFacts("GPU", (8, 9), 8 << 30, 8 << 30, False, "")
    line = check_memory(bundle, entries, facts, context=0, streams=1)
    assert "workspace 1.00" in line


def test_a_device_is_described_by_its_driver() -> None:
    facts = device_facts(Cuda(FakeCuda(total_bytes=4096, capability=(12, 0))))
    assert facts.compute_capability == (12, 0)
    assert (facts.name, facts.total_bytes, facts.free_bytes) == ("Fake GPU", 4096, 4096)


def test_a_failing_driver_is_one_line_with_function_and_status() -> None:
    cuda = FakeCuda()
    cuda.fail["cudaSetDevice"] = (0, 719)
    with pytest.raises(DeviceError, match=r"^cudaSetDevice: cudaErrorLaunchFailure \(as the"):
        device_facts(Cuda(cuda))
