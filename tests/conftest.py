"""Bundles that several test files share: each is exported at most once in a run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.device_cases import Rig
    from tests.vision_cases import Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The bundle of a case of `tests.vision_cases.WEIGHTS`, by its name."""
    from tests import vision_cases

    made: dict[str, Exported] = {}

    def bundle(case: str) -> Exported:
        if case not in made:
            output = tmp_path_factory.mktemp("exported") / "bundle"
            weights = vision_cases.WEIGHTS[case]()
            made[case] = vision_cases.export(weights, output, vision_cases.PRECISIONS[case])
        return made[case]

    return bundle


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in demo model's bundle, written by `stc-export`."""
    from stc.export import command

    output = tmp_path_factory.mktemp("demo") / "bundle"
    assert command.main(["--model", "demo", "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def half_demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle in float16, which engines are built from."""
    from stc.export import command

    output = tmp_path_factory.mktemp("half-demo") / "bundle"
    arguments = ["--model", "demo", "--precision", "fp16", "--output", str(output)]
    assert command.main(arguments) == 0
    return output


@pytest.fixture(scope="session")
def accepted_demo_bundle(half_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 demo bundle with engines for sm89, compared with ONNX Runtime on a double."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
    from stc.engines import build_command
    from tests.onnx_device import double_machine

    path = shutil.copytree(half_demo_bundle, tmp_path_factory.mktemp("accepted") / "bundle")
    with pytest.MonkeyPatch.context() as monkeypatch:
        double_machine(monkeypatch, path, "sm89")
        assert build_command.main([str(path), "--target", "this-device"]) == 0
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one geometry with transformers' own initial weights, seeds 0 and 1."""
    from tests.initial_checkpoint import write_initial_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    return (
        write_initial_checkpoint(root / "first", seed=0),
        write_initial_checkpoint(root / "second", seed=1),
    )


@pytest.fixture(scope="session")
def checkpoint_bundle(
    checkpoints: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """The bundle of the first of `checkpoints`."""
    from stc.export.checkpoint import open_checkpoint
    from tests.vision_cases import export

    output = tmp_path_factory.mktemp("checkpoint") / "bundle"
    return export(open_checkpoint(str(checkpoints[0])), output)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A tower on doubles of CUDA and TensorRT."""
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
    from stc.runtime import open as opening

    monkeypatch.setattr(opening, "share_threads", lambda: None)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency measured in this process is nobody's figure: PyTorch's threads need no rest."""
    from stc.runtime import bench

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
