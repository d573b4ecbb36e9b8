"""A machine whose GPU is the mock and whose engines compute with ONNX Runtime.

Engines are built by the real compiler and found by their real stamps; only what runs them is a
mock. So the whole way from stc-build to a captured frame is walked without a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines import command as build_command
from stc.engines import open_tensorrt
from stc.engines.build import build as engine_build
from stc.engines.gpu.cuda import Cuda
from stc.engines.library.library import EngineLibrary
from stc.engines.library.targets import Flavour, TensorRt, load_tensorrt
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import FakeTensorRt, Graph, Plan

SCRATCH_BYTES = 4096


class OnnxGraphs(dict[str, Graph]):
    """The graphs of a bundle as functions of their inputs in order."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__({name: self._graph(bundle, name) for name in bundle.manifest.graphs})

    @staticmethod
    def _graph(bundle: Bundle, name: str) -> Graph:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # A kernel of attention keeps products in float32, as ONNX Runtime's own graphs do.
        path = bundle.root / bundle.table("onnxruntime-cpu")[name].entry.file.path
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = [port.name for port in bundle.manifest.graphs[name].inputs]
        outputs = [port.name for port in bundle.manifest.graphs[name].outputs]

        def run(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
            given: Mapping[str, NDArray[Any]] = dict(zip(inputs, arrays, strict=True))
            return tuple(session.run(outputs, given))

        return run


def mock_machine(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    targets: str,
    graphs: Mapping[str, Graph] | None = None,
) -> Cuda:
    """This machine has the mock's GPU, and engines of the bundle at `path` run on it.

    They compute `graphs`, by default those of the bundle.
    """
    bundle, cuda = Bundle.open(path), Cuda(FakeCuda(total_bytes=8 << 30))

    def read(content: bytes) -> Plan:
        digest = hashlib.sha256(content).hexdigest()
        entries = EngineLibrary(path / "engines" / targets).entries().values()
        (stamp,) = (entry.stamp for entry in entries if entry.file.sha256 == digest)
        return Plan(stamp.graph, list(stamp.profiles), stamp.baked, SCRATCH_BYTES)

    mock = FakeTensorRt(
        cuda.runtime, graphs or OnnxGraphs(bundle), bundle.manifest.graphs, read=read
    )

    def load(flavour: Flavour) -> TensorRt:
        mock.__version__ = load_tensorrt(flavour).version
        return mock.flavoured(flavour)

    for module in (open_tensorrt, engine_build):
        monkeypatch.setattr(module, "load_tensorrt", load)
    for module in (open_tensorrt, build_command):
        monkeypatch.setattr(module, "load_cuda", lambda: cuda)
    return cuda
