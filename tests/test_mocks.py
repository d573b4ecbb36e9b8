"""The mocks have no function that the real CUDA and TensorRT lack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_cuda import NAMES, FakeCuda
from tests.fake_tensorrt import (
    CapturableContext,
    FakeContext,
    FakeEngine,
    FakeRuntime,
    FakeRuntimeCache,
    FakeRuntimeConfig,
    FakeTensorRt,
)

API = Path(__file__).parent / "data" / "trt-api"


def test_every_cuda_name_of_the_double_is_one_of_the_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="pip install cuda-bindings")
    names = [name for name in vars(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 25
    assert [name for name in names if not hasattr(runtime, name)] == []
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        for member, value in vars(getattr(FakeCuda, kind)).items():
            assert int(getattr(getattr(runtime, kind), member)) == value
    for flag in ("cudaStreamNonBlocking", "cudaHostAllocDefault", "cudaEventRecordExternal"):
        assert getattr(runtime, flag) == getattr(FakeCuda, flag)
    for status, name in NAMES.items():
        assert int(getattr(runtime.cudaError_t, name)) == status


@pytest.mark.parametrize("version", sorted(file.stem for file in API.glob("*.json")))
def test_every_tensorrt_name_of_the_double_is_one_of_the_bindings(version: str) -> None:
    api = json.loads((API / f"{version}.json").read_text())
    mocks = {"IExecutionContext": FakeContext, "Runtime": FakeRuntime}
    if version.startswith("tensorrt_rtx"):
        mocks |= {"IRuntimeConfig": FakeRuntimeConfig, "IExecutionContext": CapturableContext}
        mocks["IRuntimeCache"] = FakeRuntimeCache
    for kind, mock in mocks.items():
        names = [name for base in mock.__mro__ for name in vars(base) if name[0] != "_"]
        assert set(names) - {"strategy", "cache"} <= set(api[kind])
    own = {"trt", "plan", "inputs", "outputs", "ports", "create_runtime_config"}
    assert {name for name in vars(FakeEngine) if name[0] != "_"} - own <= set(api["ICudaEngine"])
    for kind in (
        "TensorIOMode",
        "TensorLocation",
        "DataType",
        "ExecutionContextAllocationStrategy",
    ):
        assert set(getattr(FakeTensorRt, kind).__members__) <= set(api[kind])
