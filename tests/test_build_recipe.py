"""What a build asks TensorRT for, on a mock of its builder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stc.bundles.bundle import Bundle
from stc.engines.build import build, compile
from stc.engines.build.build import (
    BUILDER_BYTES,
    UNIFIED_WORKSPACE_BYTES,
    default_workers,
    plan_build,
    run_build,
)
from stc.engines.build.builders import Builders, BuildProgress, Job, Outcome
from stc.engines.build.compile import Recipe, build_config, compile_engine, save_timings
from stc.engines.library.library import Chain, EngineLibrary
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import TARGETS, Flavour, TensorRt
from stc.errors import EngineError
from tests.device_cases import manifest
from tests.tiny_bundle import write_bundle


class Timings:
    """A cache of one version: names of kernels, after the version's."""

    def __init__(self, content: bytes) -> None:
        self.version, *names = content.decode().split(",") if content else ["10.3"]
        self.names = set(names)

    def combine(self, other: Timings, ignore_mismatch: bool) -> bool:
        if other.version != self.version and not ignore_mismatch:
            return False
        self.names |= other.names
        return True

    def serialize(self) -> bytes:
        return ",".join([self.version, *sorted(self.names)]).encode()


class Config:
    """An IBuilderConfig of TensorRT 10.3."""

    def __init__(self) -> None:
        self.max_aux_streams = -1
        self.progress_monitor: Any = None
        self.flags = {"TF32"}
        self.limits: dict[str, int] = {}
        self.capabilities: list[str] = []
        self.num_compute_capabilities = 0
        self.timings: Timings | None = None

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def set_memory_pool_limit(self, pool: str, size_bytes: int) -> None:
        self.limits[pool] = size_bytes

    def set_compute_capability(self, capability: str, index: int) -> bool:
        self.capabilities.append(capability)
        return index < self.num_compute_capabilities

    def create_timing_cache(self, content: bytes) -> Timings:
        return Timings(content)

    def set_timing_cache(self, timings: Timings, ignore_mismatch: bool) -> bool:
        if timings.version != "10.3" and not ignore_mismatch:
            return False
        self.timings = timings
        return True

    def get_timing_cache(self) -> Timings | None:
        return self.timings


def mock(flavour: Flavour) -> TensorRt:
    flags = SimpleNamespace(TF32="TF32")
    if flavour == "tensorrt-rtx":
        flags.REQUIRE_USER_ALLOCATION = "REQUIRE_USER_ALLOCATION"
    module = SimpleNamespace(
        __version__="10.3.0",
        BuilderFlag=flags,
        IProgressMonitor=type("IProgressMonitor", (), {}),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
        ComputeCapability=SimpleNamespace(SM86="SM86", SM89="SM89"),
    )
    return TensorRt(flavour, module)


def config_of(flavour: Flavour, reports: list[str] | None = None, **changed: Any) -> Config:
    graph = manifest().graphs["embed"]
    recipe = Recipe(
        spec=EngineSpec("embed", ({},)),
        path=Path("embed.onnx"),
        graph=graph,
        targets=(TARGETS["sm86"], TARGETS["sm89"]),
    )
    found: Config = build_config(
        mock(flavour),
        SimpleNamespace(create_builder_config=Config),
        SimpleNamespace(num_inputs=0),
        replace(recipe, **changed),
        lambda phase, *_: (reports if reports is not None else []).append(phase),
    )
    return found


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_engines_have_one_stream_and_no_tf32(flavour: Flavour) -> None:
    config = config_of(flavour)
    assert config.max_aux_streams == 0
    assert "TF32" not in config.flags
    assert config.progress_monitor is not None


def test_attention_in_tf32_is_what_tf32_is_for() -> None:
    assert "TF32" in config_of("tensorrt", attention="tf32").flags
    assert "TF32" not in config_of("tensorrt", attention="float32").flags


def test_rtx_may_not_allocate_while_it_runs_and_builds_for_every_target() -> None:
    config = config_of("tensorrt-rtx")
    assert "REQUIRE_USER_ALLOCATION" in config.flags
    assert config.capabilities == ["SM86", "SM89"]


def test_scratch_memory_is_limited_where_the_recipe_says_so() -> None:
    assert config_of("tensorrt").limits == {}
    assert config_of("tensorrt", workspace_bytes=1 << 20).limits == {"WORKSPACE": 1 << 20}


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            "pybind11::init(): factory function returned nullptr",
            r"wheel of the driver's CUDA major version \(pip install {}-cu12\), or update the",
        ),
        ("Could not find an implementation", "another version of {}, or run with --backend"),
    ],
)
def test_a_graph_that_cannot_be_built_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, said: str, fix: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise TypeError(said)

    loaders = SimpleNamespace(NetworkFromOnnxPath=failing)
    monkeypatch.setattr(compile, "_polygraphy", lambda _: loaders)
    recipe = Recipe(
        spec=EngineSpec("embed", ({},)),
        path=Path("embed.onnx"),
        graph=manifest().graphs["embed"],
        targets=(TARGETS["sm86"],),
    )
    with pytest.raises(EngineError, match=fix.format(flavour)) as caught:
        compile_engine(mock(flavour), recipe, lambda *_: None)
    assert f"embed: {flavour} 10.3.0 cannot build it ({said})" in str(caught.value)


# Timings.


def test_timings_are_kept_from_one_build_to_the_next(tmp_path: Path) -> None:
    file = tmp_path / "timings.cache"
    first = config_of("tensorrt", timing_cache=file)
    assert first.timings is not None
    first.timings.names.add("gemm")
    save_timings(first, file)
    again = config_of("tensorrt", timing_cache=file)
    assert again.timings is not None
    assert again.timings.names == {"gemm"}
    assert config_of("tensorrt-rtx", timing_cache=file).timings is None


def test_builders_at_once_keep_one_anothers_timings(tmp_path: Path) -> None:
    file = tmp_path / "timings.cache"
    configs = [config_of("tensorrt", timing_cache=file) for _ in range(2)]
    for config, name in zip(configs, ("gemm", "softmax"), strict=True):
        assert config.timings is not None
        config.timings.names.add(name)
        save_timings(config, file)
    assert file.read_bytes() == b"10.3,gemm,softmax"
    assert [one.name for one in tmp_path.iterdir()] == ["timings.cache"]


def test_timings_of_another_version_are_told_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "timings.cache"
    file.write_bytes(b"10.16,gemm")
    reports: list[str] = []
    config = config_of("tensorrt", reports, timing_cache=file)
    assert reports == ["timings of another TensorRT or device: timing anew"]
    assert config.timings is not None
    assert config.timings.names == set()
    save_timings(config, file)
    assert file.read_bytes() == b"10.3"


# What the builders are handed.


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that builders would get; every one of them fails."""
    jobs: list[Job] = []

    class Failing:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def outcomes(self, given: deque[Job]) -> Iterator[tuple[Job, Outcome]]:
            jobs.extend(given)
            yield given[0], Outcome(None, "cannot be built", 0.0, 0)

    monkeypatch.setattr(build, "Builders", Failing)
    return jobs


@pytest.mark.parametrize(
    ("target", "flavour", "limit", "timings"),
    [
        ("orin-nano", "tensorrt", UNIFIED_WORKSPACE_BYTES, True),
        ("sm89", "tensorrt", None, True),
        ("sm89", "tensorrt-rtx", None, False),
    ],
)
def test_a_target_decides_on_scratch_memory_and_the_flavour_on_timings(
    tmp_path: Path,
    handed: list[Job],
    target: str,
    flavour: Flavour,
    limit: int | None,
    timings: bool,
) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle"))
    targets = (TARGETS[target],)
    specs = [EngineSpec("embed", ({},)), EngineSpec("select", ({"M": 3},), 3)]
    plan, nobody = plan_build(bundle, specs, mock(flavour), targets), cast(BuildProgress, None)
    with pytest.raises(EngineError, match=r"^embed: cannot be built; what is built stays$"):
        run_build(bundle, plan, flavour, targets, nobody, workers=1)
    assert [job.recipe.workspace_bytes for job in handed] == [limit] * 2
    assert [job.recipe.timing_cache is not None for job in handed] == [timings] * 2


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (-9, "out of memory kills builders: close programs, add swap, or use --jobs 1"),
        (-11, "the compiler crashed: try --jobs 1, or report it with what stc-doctor prints"),
        (1, "the compiler crashed: try --jobs 1, or report it with what stc-doctor prints"),
    ],
)
def test_a_builder_that_died_tells_by_what(tmp_path: Path, code: int, fix: str) -> None:
    job = Job(
        "embed.engine",
        Recipe(
            spec=EngineSpec("embed", ({},)),
            path=Path("embed.onnx"),
            graph=manifest().graphs["embed"],
            targets=(TARGETS["sm86"],),
        ),
        EngineLibrary(tmp_path),
    )
    builders = Builders("tensorrt", 0, cast(BuildProgress, None))
    here, there = Pipe()
    builders._processes[here] = cast(Any, SimpleNamespace(join=lambda: None, exitcode=code))
    there.close()
    with pytest.raises(EngineError) as caught:
        builders._receive(here, job)
    here.close()
    assert str(caught.value) == (
        f"embed: its builder died (exit code {code}); {fix}; what is built stays"
    )


@pytest.mark.usefixtures("handed")
def test_a_build_forgets_how_its_own_flavours_tower_compared_and_no_others(tmp_path: Path) -> None:
    bundle, targets = Bundle.open(write_bundle(tmp_path / "bundle")), (TARGETS["sm89"],)
    plan = plan_build(bundle, [EngineSpec("embed", ({},))], mock("tensorrt"), targets)
    other = Chain(cosine=0.9998, device="a GPU")
    plan.library.write({}, {"tensorrt": Chain(cosine=1.0, device="a GPU"), "tensorrt-rtx": other})
    with pytest.raises(EngineError, match="cannot be built"):
        run_build(bundle, plan, "tensorrt", targets, cast(BuildProgress, None), workers=1)
    assert plan.library.listed().chain_cosine == {"tensorrt-rtx": other}


@pytest.mark.parametrize(
    ("flavour", "cores", "free_bytes", "workers"),
    [
        ("tensorrt", 8, 64 * BUILDER_BYTES, 1),
        ("tensorrt-rtx", 8, 64 * BUILDER_BYTES, 8),
        ("tensorrt-rtx", 8, 3 * BUILDER_BYTES, 3),
        ("tensorrt-rtx", 8, BUILDER_BYTES // 2, 1),
    ],
)
def test_builders_at_once_are_as_many_as_cores_and_memory_allow(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, cores: int, free_bytes: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(build, "available_host_bytes", lambda: free_bytes)
    assert default_workers(flavour) == workers
