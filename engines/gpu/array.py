"""Arrays that other libraries hold on the GPU, read where they lie.

PyTorch and CuPy hand theirs over by DLPack, which also waits for their work; pycuda, and whoever
has no DLPack, by `__cuda_array_interface__`.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from stc.engines.gpu.device import Device
from stc.errors import EngineError

_CUDA = 2
"""DLPack's number of CUDA devices."""

_LEGACY_STREAM = 1
"""CUDA's number of the default stream, which libraries without streams use."""

_KINDS = {0: "i", 1: "u", 2: "f"}
"""DLPack's type codes, as numpy's kinds."""


@dataclass(frozen=True)
class DeviceArray:
    """Memory of another library: contiguous, ready for work enqueued on our stream.

    `owner` keeps it alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object


def on_device(array: object) -> bool:
    """Whether `array` lies on a GPU as far as it tells."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) == _CUDA


def read_array(array: Any, device: Device) -> DeviceArray:
    """`array` as it lies on `device`; work enqueued from here on waits for its producer's.

    Raises EngineError when it lies elsewhere or is not contiguous.
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _from_dlpack(array, device)
    return _from_interface(array, device)


def _from_interface(array: Any, device: Device) -> DeviceArray:
    interface = array.__cuda_array_interface__
    shape = tuple(int(size) for size in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    _refuse_strided(interface.get("strides"), shape, dtype.itemsize)
    # Version 3 says "no need to wait" by None; older versions say nothing, so wait.
    stream = interface.get("stream", _LEGACY_STREAM)
    if stream is not None:
        device.wait_for(int(stream))
    return DeviceArray(int(interface["data"][0]), shape, dtype, array)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(array: Any, device: Device) -> DeviceArray:
    kind, index = (int(number) for number in array.__dlpack_device__())
    if (kind, index) != (_CUDA, device.index):
        raise EngineError(
            "frame",
            f"lies on DLPack device {kind}:{index}",
            f"{_CUDA}:{device.index}, this GPU",
            "copy it there first",
        )
    capsule = array.__dlpack__(stream=int(device.stream))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    if tensor.type_code not in _KINDS or tensor.lanes != 1:
        got = f"has DLPack type {tensor.type_code}"
        raise EngineError(
            "frame", got, "whole or real numbers", "convert it to the network's dtype"
        )
    dtype = np.dtype(f"{_KINDS[tensor.type_code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.dimensions))
    if tensor.strides:
        strides = [tensor.strides[axis] * dtype.itemsize for axis in range(tensor.dimensions)]
        _refuse_strided(strides, shape, dtype.itemsize)
    # The capsule is not marked as used: it releases the producer's memory when it is dropped.
    return DeviceArray(int(tensor.data) + int(tensor.byte_offset), shape, dtype, capsule)


def _refuse_strided(strides: Any, shape: tuple[int, ...], item_bytes: int) -> None:
    if strides is None:
        return
    expected = item_bytes
    for size, stride in zip(reversed(shape), reversed(list(strides)), strict=True):
        if size > 1 and stride != expected:
            got = f"is not contiguous, strides {tuple(strides)}"
            raise EngineError(
                "frame", got, "rows without gaps", "pass array.contiguous() or a copy"
            )
        expected *= size
