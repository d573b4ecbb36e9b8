"""Frames that other libraries hold on the GPU are read where they lie."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.engines.gpu.tensor import DeviceTensor, on_device
from stc.errors import EngineError
from stc.runtime.stream.session import StreamSession
from tests.device_cases import Rig, assert_equal, frames, oracle_session


def prepared(session: StreamSession, index: int) -> tuple[NDArray[np.float32], Any]:
    frame = frames(index + 1)[index]
    return session._preprocess(frame.rgb).copy(), frame


class Interface:
    """An array of pycuda or CuPy, as far as it tells: its memory and the stream it was made on."""

    def __init__(self, rig: Rig, values: NDArray[Any], **told: Any) -> None:
        self.memory = DeviceTensor(rig.device, values.shape, values.dtype)
        rig.cuda.at(self.memory.address, values.nbytes)[:] = values.reshape(-1).view(np.uint8)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.memory.address, True),
            "version": 3,
            **told,
        }


class Packed:
    """An array of PyTorch: numpy's own capsule of memory on the GPU."""

    def __init__(self, rig: Rig, values: NDArray[Any], device: tuple[int, int] = (2, 0)) -> None:
        self.memory = DeviceTensor(rig.device, values.shape, values.dtype)
        content = rig.cuda.at(self.memory.address, values.nbytes)
        content[:] = values.reshape(-1).view(np.uint8)
        self.view = content.view(values.dtype).reshape(values.shape)
        self.device = device
        self.stream: int | None = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.stream = stream
        return self.view.__dlpack__()


@pytest.mark.parametrize("kind", ["interface", "dlpack"])
def test_frames_on_the_device_are_read_where_they_lie(rig: Rig, kind: str) -> None:
    session, oracle, plain = rig.session(), oracle_session(), oracle_session()
    for index in range(12):
        values, frame = prepared(plain, index)
        array = Interface(rig, values, stream=None) if kind == "interface" else Packed(rig, values)
        uploads = rig.cuda.calls.count("cudaMemcpyAsync")
        got = session.push(replace(frame, rgb=array))
        assert_equal(got, oracle.push(frame))
        assert rig.cuda.calls.count("cudaMemcpyAsync") > uploads
        if isinstance(array, Packed):
            assert array.stream == int(rig.device.stream)


@pytest.mark.parametrize(("told", "waits"), [({}, 1), ({"stream": None}, 0), ({"stream": 7}, 1)])
def test_work_of_the_library_that_made_the_frame_is_waited_for(
    rig: Rig, told: dict[str, Any], waits: int
) -> None:
    session = rig.session()
    values, frame = prepared(session, 0)
    rig.cuda.calls.clear()
    session.push(replace(frame, rgb=Interface(rig, values, **told)))
    assert rig.cuda.calls.count("cudaStreamWaitEvent") == waits


def test_frames_that_cannot_be_read_are_refused_and_the_session_goes_on(rig: Rig) -> None:
    session = rig.session()
    values, frame = prepared(session, 0)
    bad = [
        (
            Interface(rig, values[:, :, :16]),
            r"float32 \(3, 20, 16\), expected float32 \(3, 20, 20\)",
        ),
        (Interface(rig, values.astype(np.float16)), "is float16"),
        (Interface(rig, values, strides=(1600, 4, 80)), r"is not contiguous.*; pass array\.cont"),
        (Packed(rig, values, device=(2, 1)), "lies on DLPack device 2:1.*; copy it there first"),
    ]
    for array, said in bad:
        with pytest.raises(EngineError, match=said):
            session.push(replace(frame, rgb=array))
    assert session.push(frame).kind == "reference"


def test_arrays_on_the_device_become_tensors_of_their_own(rig: Rig) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    array = Interface(rig, values)
    tensor = rig.backend.to_device(array)  # type: ignore[arg-type]
    rig.cuda.at(array.memory.address, 4)[:] = 0
    np.testing.assert_array_equal(rig.backend.to_host(tensor), values)


def test_rows_are_written_and_read_on_the_device(rig: Rig) -> None:
    backend = rig.backend
    random = np.random.default_rng(0)
    expected = random.standard_normal((2, 9, 4)).astype(np.float32)
    rows = random.standard_normal((2, 5, 4)).astype(np.float32)
    buffer = backend.to_device(expected)
    backend.write_rows(buffer, 3, backend.to_device(rows))
    backend.write_rows(buffer, 0, backend.to_device(rows), first=1, count=2)
    expected[:, 3:8] = rows
    expected[:, 0:2] = rows[:, 1:3]
    np.testing.assert_array_equal(backend.to_host(buffer), expected)
    np.testing.assert_array_equal(backend.read_rows(buffer, 2, 4), expected[:, 2:6])


@pytest.mark.parametrize(
    ("shape", "start", "count", "made"),
    [((9, 4), 2, 3, 0), ((1, 9, 4), 2, 3, 0), ((2, 9, 4), 0, 9, 0), ((2, 9, 4), 2, 3, 1)],
)
def test_rows_that_lie_in_one_piece_are_read_without_memory_for_them(
    rig: Rig, shape: tuple[int, ...], start: int, count: int, made: int
) -> None:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tensor, before = rig.backend.to_device(values), rig.cuda.calls.count("cudaMalloc")
    read = rig.backend.read_rows(tensor, start, count)
    np.testing.assert_array_equal(read, values[..., start : start + count, :])
    assert rig.cuda.calls.count("cudaMalloc") == before + made


def test_tensors_tell_other_libraries_where_they_lie(rig: Rig) -> None:
    tensor = rig.backend.to_device(np.zeros((2, 3), np.float16))
    assert tensor.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (tensor.address, False),
        "strides": None,
        "stream": int(rig.device.stream),
        "version": 3,
    }


def test_a_frame_on_another_kind_of_device_is_a_host_array(rig: Rig) -> None:
    assert not on_device(np.zeros(3))
    assert not on_device(SimpleNamespace(__dlpack_device__=lambda: (1, 0)))
