"""Numbers that are none, and devices that fail: the session ends and frees its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.engines.library.targets import Flavour
from stc.errors import DeviceError, EngineError, NonFiniteError
from tests.device_cases import SETTINGS, Rig, assert_same_stream, frames
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import VERSION, FakeTensorRt


def test_a_graph_that_yields_nan_is_named(rig: Rig) -> None:
    session, stream = rig.session(), frames(3)
    session.push(stream[0])
    whole = rig.trt.graphs["update_01"]

    def broken(*arrays: Any) -> tuple[NDArray[Any], ...]:
        return tuple(output * np.nan for output in whole(*arrays))

    graphs = dict(rig.trt.graphs)
    rig.trt.graphs = {**graphs, "update_01": broken}
    with pytest.raises(NonFiniteError, match="graph update_01, frame 1"):
        session.push(stream[1])
    rig.trt.graphs = graphs
    assert session.push(stream[2]).kind == "reference"


@pytest.mark.parametrize(
    "function", ["cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch"]
)
def test_a_device_error_ends_the_session_frees_its_memory_and_spares_the_next(
    rig: Rig, function: str
) -> None:
    before = rig.device.allocated_bytes
    session, stream = rig.session(), frames(20)
    for frame in stream[:16]:
        session.push(frame)
    rig.cuda.fail[function] = (0, 2)
    with pytest.raises(DeviceError, match=f"{function}: cudaErrorMemoryAllocation"):
        session.push(stream[16])
    assert rig.device.allocated_bytes - before < 20_000  # scratch and sinks, which are the tower's
    with pytest.raises(EngineError, match=f"stream: was ended .*{function}.*open a new one"):
        session.push(stream[17])
    assert_same_stream(rig.session(), SETTINGS, 12)


def test_a_lost_device_is_closed_and_opened_again(rig: Rig) -> None:
    session, stream = rig.session(), frames(12)
    for frame in stream[:8]:
        session.push(frame)
    rig.cuda.fail["cudaStreamSynchronize"] = (0, 700)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        session.push(stream[8])
    assert rig.device.closed
    assert rig.cuda.memory == {}
    with pytest.raises(EngineError, match="was ended"):
        session.push(stream[9])
    # Where the driver could reset the context, which CUDA does not promise.
    rig.open()
    assert_same_stream(rig.session(), SETTINGS, 12)


def test_a_device_that_cannot_be_reset_says_to_start_again(rig: Rig) -> None:
    session, stream = rig.session(), frames(2)
    session.push(stream[0])
    rig.cuda.reset_fixes = False
    rig.cuda.fail["cudaStreamSynchronize"] = (0, 700)
    with pytest.raises(DeviceError, match=r"cudaErrorIllegalAddress.*; open the tower again"):
        session.push(stream[1])
    with pytest.raises(DeviceError, match=r"cudaErrorIllegalAddress.*start the program again$"):
        rig.open()


@pytest.mark.parametrize("captured", [False, True])
def test_an_engine_that_does_not_run_because_the_device_is_lost_ends_the_session(
    rig: Rig, captured: bool
) -> None:
    session, stream = rig.session(), frames(12)
    session.push(stream[0])

    def lose(graph: str, where: str) -> bool:
        rig.cuda.sticky = 700 if where == ("capture" if captured else "run") else 0
        return bool(rig.cuda.sticky)

    rig.trt.refuse = lose
    with pytest.raises(DeviceError, match=r"device: was lost \(cudaErrorIllegalAddress"):
        for frame in stream[1:]:
            session.push(frame)
    assert rig.device.closed
    assert rig.said == []


@pytest.mark.parametrize(
    ("status", "fix"),
    [
        (35, "cuda-bindings<13"),
        (100, "--backend onnxruntime"),
        (2, "open fewer streams"),
        (700, "start the program again"),
    ],
)
def test_an_error_of_cuda_names_what_fixes_it(rig: Rig, status: int, fix: str) -> None:
    rig.cuda.fail["cudaSetDevice"] = (0, status)
    with pytest.raises(DeviceError, match=f"^cudaSetDevice: cudaError.*; .*{fix}"):
        rig.device.cuda.call("cudaSetDevice", 0)


def test_too_little_memory_is_a_device_error_and_nothing_stays(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    used = rig.device.allocated_bytes
    rig.cuda.total_bytes = used + 30_000
    with pytest.raises(DeviceError, match="cudaMalloc: cudaErrorMemoryAllocation"):
        rig.session()
    rig.cuda.total_bytes = 1 << 30
    assert_same_stream(rig.session(), SETTINGS, 6)


def test_a_session_beside_one_that_lost_the_device_touches_no_freed_memory(rig: Rig) -> None:
    first, second = rig.session(), rig.session()
    stream = frames(3)
    for session in (first, second):
        session.push(stream[0])
    rig.cuda.fail["cudaStreamSynchronize"] = (0, 700)
    with pytest.raises(DeviceError, match="cudaErrorIllegalAddress"):
        first.push(stream[1])
    with pytest.raises(DeviceError, match=r"device: was lost .*cudaErrorIllegalAddress.*open"):
        second.push(stream[1])
    assert not rig.cuda.written_after_free()
    with pytest.raises(EngineError, match=r"was ended .*cudaErrorIllegalAddress"):
        second.push(stream[2])


def test_a_closed_session_leaves_nothing_of_its_own(rig: Rig) -> None:
    warm = rig.session()
    for frame in frames(12):
        warm.push(frame)
    warm.close()

    def held() -> list[int]:
        cuda = rig.cuda
        return [len(one) for one in (cuda.memory, cuda.pinned, cuda.events, cuda.executables)]

    before = held()
    session = rig.session()
    for frame in frames(12):
        session.push(frame)
    session.close()
    assert held() == before
    assert held()[1:] == [0, 0, 0]


def test_a_closed_backend_leaves_no_graph(rig: Rig) -> None:
    session = rig.session()
    for frame in frames(12):
        session.push(frame)
    rig.backend.close()
    cuda = rig.cuda
    held = (cuda.memory, cuda.pinned, cuda.streams, cuda.events, cuda.executables)
    assert [len(one) for one in held] == [0] * 5
    del session


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_a_wheel_newer_than_the_driver_is_one_line_and_gives_the_device_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: Flavour
) -> None:
    def refuse(_: FakeTensorRt, logger: Any) -> None:
        logger.log(FakeTensorRt.ILogger.Severity.ERROR, "CUDA initialization failure, error 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(FakeTensorRt, "Runtime", refuse)
    cuda = FakeCuda()
    with pytest.raises(EngineError) as caught:
        Rig(tmp_path, flavour=flavour, cuda=cuda)
    assert str(caught.value).startswith(
        f"{flavour}: {VERSION} cannot be started (CUDA initialization failure, error 35); "
    )
    assert f"(pip install {flavour}-cu12), or update the driver" in str(caught.value)
    assert cuda.streams == {}
