"""Bundles that several test files share: each is exported at most once in a run.

Runs of several processes share them, and a core belongs to each process alone.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.once import SHARED, Once

if TYPE_CHECKING:
    from tests.device_cases import Rig
    from tests.trace_cache import TraceCache
    from tests.vision_cases import Exported


def pytest_configure(config: pytest.Config) -> None:
    """One of several workers computes on one core, and so does all that it starts."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    gc.disable()  # while files are collected
    # Examples take what a busy machine gives them.
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker per core; none where speed is measured, which needs all cores."""
    return 0 if config.option.markexpr == "slow" else len(os.sched_getaffinity(0))


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be looked through for garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def kept_traces(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TraceCache]:
    """Traces are read from pytest's cache folder, and kept there for later runs."""
    from stc.export.graphs import trace as graph
    from tests.collected_once import collect_once
    from tests.trace_cache import TraceCache

    if hasattr(pytestconfig, "cache"):
        folder = pytestconfig.cache.mkdir("traces")
    else:  # -p no:cacheprovider
        folder = tmp_path_factory.mktemp("traces")
    traces = TraceCache(folder, graph._traced)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(graph, "_traced", traces)
        collect_once(monkeypatch.setattr)
        yield traces


@pytest.fixture(scope="session", autouse=True)
def traces_are_kept(request: pytest.FixtureRequest) -> None:
    """Where a test file has imported torch."""
    if "torch" in sys.modules:
        request.getfixturevalue("kept_traces")


@pytest.fixture(scope="session")
def once() -> Once:
    """Folders that the run's processes share."""
    return SHARED


@pytest.fixture(scope="session")
def exported(once: Once) -> Callable[[str], Exported]:
    """The bundle of a case of `tests.vision_cases.WEIGHTS`, by its name."""
    from stc.bundles.bundle import Bundle
    from tests import vision_cases

    @cache
    def bundle(case: str) -> Exported:
        weights = vision_cases.WEIGHTS[case]()
        precision = vision_cases.PRECISIONS[case]
        made = once(case, lambda root: vision_cases.export(weights, root / "bundle", precision))
        return vision_cases.Exported(weights, Bundle.open(made / "bundle"))

    return bundle


@pytest.fixture(scope="session")
def demo_bundle(once: Once, kept_traces: TraceCache) -> Path:
    """The built-in demo model's bundle, written by `stc-export`."""
    return once("demo", exported_demo) / "bundle"


@pytest.fixture(scope="session")
def talkative_demo_bundle(demo_bundle: Path, once: Once) -> Path:
    """The same without stop tokens: its answers are as long as they may be, whatever it learnt."""

    def without_stops(root: Path) -> None:
        manifest = shutil.copytree(demo_bundle, root / "bundle") / "manifest.json"
        document = json.loads(manifest.read_text())
        document["language"]["stop_token_ids"] = []
        manifest.write_text(json.dumps(document))

    return once("talkative-demo", without_stops) / "bundle"


@pytest.fixture(scope="session")
def half_demo_bundle(once: Once, kept_traces: TraceCache) -> Path:
    """The demo bundle in float16, which engines are built from; two blocks on each side."""
    from stc.export import weights
    from tests.shallow_demo import write_shallow_demo

    def export(root: Path) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(weights, "MODEL", write_shallow_demo(root / "demo", blocks=2))
            exported_demo(root, "--precision", "fp16")

    return once("half-demo", export) / "bundle"


def exported_demo(root: Path, *flags: str) -> None:
    """`root` holds the demo's bundle."""
    from stc.export import command

    assert command.main(["--model", "demo", *flags, "--output", str(root / "bundle")]) == 0


@pytest.fixture(scope="session")
def accepted_demo_bundle(half_demo_bundle: Path, once: Once) -> Path:
    """The same with engines for sm89, compared with ONNX Runtime on a mock."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
    from stc.engines import command as build_command
    from tests.onnx_device import mock_machine

    def accept(root: Path) -> None:
        path = shutil.copytree(half_demo_bundle, root / "bundle")
        with pytest.MonkeyPatch.context() as monkeypatch:
            mock_machine(monkeypatch, path, "sm89")
            assert build_command.main([str(path), "--target", "this-device"]) == 0

    return once("accepted-demo", accept) / "bundle"


@pytest.fixture(scope="session")
def checkpoints(once: Once) -> tuple[Path, Path]:
    """Two checkpoints of one geometry with transformers' own initial weights, seeds 0 and 1."""
    from tests.initial_checkpoint import write_initial_checkpoint

    def write(root: Path) -> None:
        write_initial_checkpoint(root / "first", seed=0)
        write_initial_checkpoint(root / "second", seed=1)

    root = once("checkpoints", write)
    return root / "first", root / "second"


@pytest.fixture(scope="session")
def checkpoint_bundle(
    checkpoints: tuple[Path, Path], once: Once, kept_traces: TraceCache
) -> Exported:
    """The bundle of the first of `checkpoints`."""
    from stc.bundles.bundle import Bundle
    from stc.export.checkpoint.checkpoint import open_checkpoint
    from tests import vision_cases

    weights = open_checkpoint(str(checkpoints[0]))
    made = once("checkpoint-bundle", lambda root: vision_cases.export(weights, root / "bundle"))
    return vision_cases.Exported(weights, Bundle.open(made / "bundle"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A tower on mocks of CUDA and TensorRT."""
    from tests.device_cases import Rig

    return Rig(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def stops_are_heard() -> None:
    """Under nohup or in a shell's background, tests and all they start would hear none."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither tests nor what they start write into the user's cache, or believe it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run in this process does not take its threads, which could not be taken back."""
    from stc.engines import onnxruntime_backend

    monkeypatch.setattr(onnxruntime_backend, "share_threads", lambda: None)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency measured in this process is nobody's figure: PyTorch's threads need no rest."""
    from stc.runtime.bench import bench

    monkeypatch.setattr(bench, "PAUSE_S", 0.0)


@pytest.fixture
def run_main(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command's `main` in this process."""

    def run(
        main: Callable[[Sequence[str]], int], *arguments: object
    ) -> subprocess.CompletedProcess[str]:
        words = list(map(str, arguments))
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as left:  # what the parser refuses
            assert isinstance(left.code, int)
            code = left.code
        written = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, written.out, written.err)

    return run


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MB. Skips where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here; other tests need none")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
