"""`stc-parity --backend tensorrt` on a device without PyTorch, on mocks of GPU and TensorRT."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")

from stc import contracts
from stc.bundles.bundle import Bundle
from stc.engines.tensorrt.captured import CapturedRunner
from stc.method.graphs import vision_graphs
from stc.runtime.commands import parity as parity_command
from tests.fake_tensorrt import Graph
from tests.onnx_device import OnnxGraphs, mock_machine

Parity = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def bundle(accepted_demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On a machine with the mock's GPU and no PyTorch."""
    path = shutil.copytree(accepted_demo_bundle, tmp_path / "bundle")
    mock_machine(monkeypatch, path, "sm89")
    monkeypatch.setitem(sys.modules, "stc.export.weights", None)
    return path


@pytest.fixture
def parity(bundle: Path, run_main: Callable[..., CompletedProcess[str]]) -> Parity:
    short = ("--frames", 2, "--reference-interval", 2)
    backend = ("--backend", "tensorrt-rtx", *short, "--json", "-")
    return lambda *flags: run_main(parity_command.main, bundle, *backend, *flags)


def document(ran: CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_engines_and_captured_frames_are_compared_with_onnx_runtime(parity: Parity) -> None:
    ran = parity()
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = document(ran)
    assert (found["against"], found["captured"]) == ("ONNX Runtime", ["reference", "reuse"])
    where = {row["where"] for row in found["rows"]}
    streams = {"dense", "shared", "layerwise", "captured shared", "captured layerwise"}
    answer = {"whole decoder", "greedy answer"}
    assert where == {*vision_graphs(2), *contracts.language_graphs(2), *streams, *answer}
    assert "the bundle and ONNX Runtime are equal" in ran.stdout
    assert found["latency"]["reuse_ms_p50"] > 0


def test_the_language_side_can_be_left_out(parity: Parity) -> None:
    ran = parity("--vision-only")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    where = {row["where"] for row in document(ran)["rows"]}
    assert not where & contracts.language_graphs(2).keys()


@pytest.mark.parametrize(
    ("graph", "found", "spared"),
    [
        ("reference_01", {"reference_01", "dense"}, {"reference_00", "captured shared"}),
        ("update_01", {"update_01", "shared"}, {"update_00", "dense", "captured shared"}),
        ("attend_01", {"attend_01", "whole decoder"}, {"attend_00", "head", "dense"}),
    ],
)
def test_an_engine_that_strays_from_onnx_runtime_is_found(
    graph: str,
    found: set[str],
    spared: set[str],
    bundle: Path,
    parity: Parity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: dict[str, Graph] = OnnxGraphs(Bundle.open(bundle))
    whole = graphs[graph]

    def noisy(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        noise, wide = np.random.default_rng(0), (one.astype(np.float32) for one in whole(*arrays))
        return tuple(one + 0.3 * one.std() * noise.standard_normal(one.shape) for one in wide)

    mock_machine(monkeypatch, bundle, "sm89", {**graphs, graph: noisy})
    ran = parity()
    assert ran.returncode == 1
    failed = {row["where"] for row in document(ran)["rows"] if not row["passed"]}
    assert failed >= found
    assert not failed & spared


def test_a_captured_frame_that_differs_from_its_engines_is_found(
    parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CapturedRunner.run

    def otherwise(*asked: Any) -> Any:
        ran = whole(*asked)
        found = {
            name: one[::-1].copy() if one.dtype.kind == "f" else one
            for name, one in ran.results.items()
        }
        return replace(ran, results=found)

    monkeypatch.setattr(CapturedRunner, "run", otherwise)
    ran = parity()
    assert ran.returncode == 1
    failed = {row["where"] for row in document(ran)["rows"] if not row["passed"]}
    assert failed == {"captured shared", "captured layerwise"}


def test_a_checkpoint_asks_for_pytorch(parity: Parity) -> None:
    ran = parity("--checkpoint", "anywhere")
    assert ran.returncode == 2
    assert "PyTorch: cannot be imported" in ran.stderr
