"""The commands on `--backend tensorrt`, on the mocks of CUDA and TensorRT."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.engines import open_tensorrt
from stc.engines.gpu.device import Say
from stc.engines.library.targets import Flavour
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import EngineError
from stc.runtime.bench.bench import Bench
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import run as run_command
from stc.runtime.figures.machine import gpu_facts
from stc.runtime.stream.opening import open_tower
from tests.device_cases import Rig, write_device_bundle

Run = Callable[..., "CompletedProcess[str]"]
CLIP = Path(__file__).parent / "data" / "street.mp4"


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the commands asked open_tensorrt for; they get a mock's backend."""
    asked: list[dict[str, Any]] = []

    def open_mock(
        bundle: Bundle, flavour: Flavour, say: Say, *, context: int, streams: int
    ) -> TensorRtBackend:
        asked.append({"flavour": flavour, "context": context, "streams": streams})
        rigs.append(Rig(tmp_path / "rig", flavour=flavour))
        return rigs[-1].backend

    rigs: list[Rig] = []
    monkeypatch.setattr(open_tensorrt, "open_tensorrt", open_mock)
    yield asked
    # Whatever a command did, it gave the GPU back.
    for rig in rigs:
        assert (rig.device.closed, rig.cuda.memory, rig.cuda.streams) == (True, {}, {})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_device_bundle(tmp_path / "bundle")


def document(run: CompletedProcess[str]) -> dict[str, Any]:
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_bench_measures_frames_that_are_one_graph_each(
    bundle: Path, run_main: Run, opened: list[dict[str, Any]], flavour: str
) -> None:
    arguments = [bundle, "--backend", flavour, "--frames", "8", "--budget", "5"]
    figures = document(run_main(bench_command.main, *arguments))
    assert opened == [{"flavour": flavour, "context": 0, "streams": 1}]
    assert figures["backend"] == flavour
    assert figures["captured"] == ["reference", "reuse"]
    assert figures["gpu"]["name"] == "Fake GPU"
    assert figures["gpu"]["memory_allocated_bytes"] > 0
    assert figures["reference_ms_p50"] > 0
    assert figures["reuse_ms_p50"] > 0


def test_a_bench_that_takes_long_says_how_far_it_is(
    bundle: Path, run_main: Run, opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Bench.measure

    def slowly(bench: Bench, *arguments: Any) -> None:
        time.sleep(0.2)
        measure(bench, *arguments)

    monkeypatch.setattr(Bench, "measure", slowly)
    monkeypatch.setattr(bench_command, "PLAIN_S", 0.0)
    ran = run_main(bench_command.main, bundle, "--backend", "tensorrt", "--frames", "3")
    assert ran.returncode == 0
    assert re.search(r": [123] of 3 after 0:00:0", ran.stderr)


def test_a_tower_that_cannot_be_loaded_gives_the_device_back(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "rig")
    monkeypatch.setattr(open_tensorrt, "open_tensorrt", lambda *_, **__: rig.backend)
    del rig.backend._entries["project"]
    with pytest.raises(EngineError, match="project: has no engine; build it with: stc-build"):
        open_tower(Bundle.open(bundle), "cpu", "tensorrt")
    assert rig.device.closed
    assert (rig.cuda.memory, rig.cuda.streams) == ({}, {})


def test_run_streams_a_clip_beside_a_dense_stream(
    bundle: Path, run_main: Run, opened: list[dict[str, Any]]
) -> None:
    arguments = [bundle, "--backend", "tensorrt", "--video", CLIP, "--frames", "6"]
    ran = run_main(run_command.main, *arguments, "--compare-dense", "--json", "-")
    assert opened == [{"flavour": "tensorrt", "context": 0, "streams": 2}]
    assert document(ran)["fidelity"] is not None


def test_the_device_backend_needs_no_onnx_runtime(
    bundle: Path, run_main: Run, opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "stc.engines.onnxruntime_backend", raising=False)
    figures = document(
        run_main(bench_command.main, bundle, "--backend", "tensorrt", "--frames", "2")
    )
    assert figures["backend"] == "tensorrt"
    ran = run_main(bench_command.main, bundle, "--frames", "2")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "pip install onnxruntime, or use --backend tensorrt" in ran.stderr


def test_a_machine_without_tensorrt_is_one_line_with_the_way_out(
    bundle: Path, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    ran = run_main(bench_command.main, bundle, "--backend", "tensorrt", "--frames", "2")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "--system-site-packages" in ran.stderr


def test_the_clock_of_a_jetson_is_read_from_the_kernel(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    governor = tmp_path / "sys/class/devfreq/17000000.gpu"
    governor.mkdir(parents=True)
    (governor / "cur_freq").write_text("306000000\n")
    facts = gpu_facts(rig.device.cuda, 5, tmp_path)
    assert facts["clock_mhz"] == 306.0
    for unreadable in ("asleep\n", None):
        (governor / "cur_freq").unlink()
        if unreadable is not None:
            (governor / "cur_freq").write_text(unreadable)
        assert gpu_facts(rig.device.cuda, 5, tmp_path)["clock_mhz"] != 306.0
    assert (facts["memory_allocated_bytes"], facts["cuda_driver"]) == (5, 12060)
    assert facts["compute_capability"] == "8.9"
