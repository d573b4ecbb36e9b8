"""stc-build on a device: engines that stray are rebuilt, refused, and never left as they are.

The real compiler builds, the mock of a GPU runs what the engines should compute.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")

from stc.bundles.bundle import Bundle
from stc.engines import command as build_command
from stc.engines.accept import acceptance
from stc.engines.library.library import (
    Acceptance,
    Attention,
    Chain,
    EngineEntry,
    EngineLibrary,
    library_of,
)
from stc.engines.open_tensorrt import open_tensorrt
from stc.errors import EngineError
from stc.runtime.stream.opening import open_tower
from stc.runtime.stream.session import StreamSession
from stc.settings import Settings
from tests.fake_tensorrt import Graph
from tests.onnx_device import SCRATCH_BYTES, OnnxGraphs, mock_machine

Build = Callable[[], "CompletedProcess[str]"]
HERE = "Fake GPU"
REFUSED = Acceptance(passed=False, min_cosine=0.9, outputs={"hidden_out": 0.9}, device=HERE)
PASSED = Acceptance(passed=True, min_cosine=1.0, outputs={}, device=HERE)


@pytest.fixture
def bundle(accepted_demo_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(accepted_demo_bundle, tmp_path / "bundle")


@pytest.fixture
def build(bundle: Path, run_main: Callable[..., CompletedProcess[str]]) -> Build:
    return lambda: run_main(build_command.main, bundle, "--target", "this-device")


def library_at(bundle: Path) -> EngineLibrary:
    return library_of(Bundle.open(bundle), "sm89")


def entry_of(bundle: Path, graph: str) -> tuple[str, EngineEntry]:
    entries = library_at(bundle).entries()
    return next((name, one) for name, one in entries.items() if one.stamp.graph == graph)


def judge(
    bundle: Path, graph: str, acceptance: Acceptance | None, chain: float = 1.0, on: str = HERE
) -> None:
    """The list says of `graph` what an earlier comparison might have said, of the tower `on`."""
    library = library_at(bundle)
    name, entry = entry_of(bundle, graph)
    judged = entry.model_copy(update={"acceptance": acceptance})
    library.write(
        {**library.entries(), name: judged}, {"tensorrt-rtx": Chain(cosine=chain, device=on)}
    )


def straying(bundle: Path, *, until: Attention | None) -> dict[str, Graph]:
    """The bundle's graphs, but that update_00 strays until its engine computes attention in the
    way of `until`, or always."""
    graphs: dict[str, Graph] = OnnxGraphs(Bundle.open(bundle))
    whole = graphs["update_00"]

    def run(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        outputs = whole(*arrays)
        if entry_of(bundle, "update_00")[1].attention == until:
            return outputs
        noise, wide = np.random.default_rng(0), (one.astype(np.float32) for one in outputs)
        return tuple(one + 0.1 * one.std() * noise.standard_normal(one.shape) for one in wide)

    return {**graphs, "update_00": run}


@pytest.mark.parametrize(
    ("acceptance", "chain"),
    [
        (REFUSED, 1.0),
        (None, 1.0),
        (PASSED, 0.5),
    ],
)
def test_what_was_not_accepted_is_compared_by_the_command_that_fixes_it(
    bundle: Path,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    acceptance: Acceptance | None,
    chain: float,
) -> None:
    mock_machine(monkeypatch, bundle, "sm89")
    judge(bundle, "keys_00", acceptance, chain)
    ran = build()
    assert ran.returncode == 0, ran.stderr
    assert "engines are there already" in ran.stdout
    assert "compared with ONNX Runtime on Fake GPU: accepted" in ran.stdout
    assert "compared with" not in build().stdout
    entries = library_at(bundle).entries().values()
    assert {entry.workspace_bytes for entry in entries} == {SCRATCH_BYTES}


@pytest.mark.parametrize("what", ["engine", "refused engine", "tower"])
def test_what_was_judged_on_another_gpu_is_compared_here(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    other = "another GPU"
    mock_machine(monkeypatch, bundle, "sm89")
    judged = {"engine": PASSED, "refused engine": REFUSED}.get(what)
    if judged is not None:
        judge(bundle, "keys_00", judged.model_copy(update={"device": other}))
    else:
        judge(bundle, "keys_00", PASSED, 0.5, on=other)
    said: list[str] = []
    opened = Bundle.open(bundle)
    open_tensorrt(opened, "tensorrt-rtx", said.append, context=0).close()
    assert len(said) == (what != "tower")
    assert all("1 engines were never compared" in line for line in said)
    assert all("--target sm89 --backend tensorrt-rtx" in line for line in said)
    ran = build()
    assert ran.returncode == 0, ran.stderr
    assert "compared with ONNX Runtime on Fake GPU: accepted" in ran.stdout
    assert "compared with" not in build().stdout


def test_engines_for_several_gpus_may_have_been_accepted_on_another(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here no GPU says more of them than the list does."""
    judge(bundle, "keys_00", PASSED.model_copy(update={"device": "another GPU"}))

    def no_gpu() -> None:
        raise EngineError("CUDA", "no driver")

    monkeypatch.setattr(build_command, "load_cuda", no_gpu)
    assert build_command.main([str(bundle), "--target", "sm89"]) == 0


@pytest.mark.parametrize("cut", [True, False])
def test_engines_of_other_sizes_that_nothing_can_use_are_forgotten(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """Of another ratio, which the command does not build: it must not fail on them for ever."""
    mock_machine(monkeypatch, bundle, "sm89")
    library = library_at(bundle)
    _, entry = entry_of(bundle, "select")
    sizes = {"profiles": ({"M": 2},), "baked": 2} | ({} if cut else {"version": "1.0.0"})
    file = library.store("old.engine", memoryview(b"old"))
    old = entry.model_copy(
        update={"stamp": entry.stamp.model_copy(update=sizes), "file": file, "acceptance": None}
    )
    library.write({**library.entries(), "old.engine": old}, library.listed().chain_cosine)
    if cut:
        (library.folder / "old.engine").unlink()
    ran = build()
    assert ran.returncode == 0, ran.stderr
    assert "old.engine" not in library.entries()
    assert not (library.folder / "old.engine").exists()
    assert "engines are there already" in build().stdout


@pytest.mark.parametrize("attention", ["unfused", "float32"])
def test_a_block_that_strays_is_rebuilt_with_attention_that_does_not(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch, attention: Attention
) -> None:
    mock_machine(monkeypatch, bundle, "sm89", straying(bundle, until=attention))
    judge(bundle, "update_00", None)
    ran = build()
    assert ran.returncode == 0, ran.stderr
    name, entry = entry_of(bundle, "update_00")
    assert f"{name}: rebuilt with {attention} attention, cosine 0." in ran.stdout
    assert entry.attention == attention
    assert entry.acceptance is not None
    assert entry.acceptance.passed


def test_a_block_that_strays_however_it_is_built_fails_every_time(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_machine(monkeypatch, bundle, "sm89", straying(bundle, until=None))
    judge(bundle, "update_00", None)
    for _ in range(2):
        ran = build()
        assert ran.returncode == 1
        assert "REFUSED" in ran.stdout
        assert "NOT accepted" in ran.stdout


def test_a_rebuild_that_was_interrupted_is_done_by_the_next_run(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_machine(monkeypatch, bundle, "sm89", straying(bundle, until="unfused"))
    judge(bundle, "update_00", None)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(acceptance, "run_build", interrupted)
        assert build().returncode == 130
    assert entry_of(bundle, "update_00")[1].attention == "fused"
    assert build().returncode == 0
    assert entry_of(bundle, "update_00")[1].attention == "unfused"


def test_a_pruner_that_strays_is_refused_to_streams_that_use_it_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_machine(monkeypatch, bundle, "sm89")
    judge(bundle, "prune_gaussian", REFUSED)
    name, entry = entry_of(bundle, "prune_gaussian")
    assert entry.stamp.baked is not None
    tower = open_tower(Bundle.open(bundle), "cpu", "tensorrt-rtx")
    settings = Settings(pruner="gaussian", budget=entry.stamp.baked)
    refusal = f"^{name}: deviates from ONNX Runtime .*; no build fixes it: use another --pruner, "
    with pytest.raises(EngineError, match=refusal):
        StreamSession(tower, settings)
    StreamSession(tower, replace(settings, pruner="gaussian-fixed")).close()
    tower.close()


# Before anything is built or loaded.


def test_a_device_without_the_memory_is_refused_before_anything_is_built(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = mock_machine(monkeypatch, bundle, "sm89")
    shutil.rmtree(library_at(bundle).folder)
    cuda.runtime.total_bytes = 100 << 20
    ran = build()
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: sm89: needs ")
    assert not library_at(bundle).folder.exists()


def test_a_device_without_the_memory_is_refused_before_anything_is_loaded(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = mock_machine(monkeypatch, bundle, "sm89")
    cuda.runtime.total_bytes = 100 << 20
    with pytest.raises(EngineError, match=r"Fake GPU: needs .* what is free"):
        open_tower(Bundle.open(bundle), "cpu", "tensorrt-rtx")
    assert "cudaMalloc" not in cuda.runtime.calls


def test_as_many_builders_work_as_the_machine_allows(
    bundle: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_machine(monkeypatch, bundle, "sm89")
    shutil.rmtree(library_at(bundle).folder)
    asked: list[int] = []

    def stop(*_: Any, workers: int) -> None:
        asked.append(workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(build_command, "run_build", stop)
    monkeypatch.setattr(build_command, "default_workers", lambda _: 7)
    assert build().returncode == 130
    assert asked == [7]
