"""Arrays in device memory, ours and other libraries', and in host memory that a device copies from.

PyTorch and CuPy hand theirs over by DLPack, which also waits for their work; pycuda, and whoever
has no DLPack, by `__cuda_array_interface__`.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.engines.gpu.device import Device
from stc.errors import DeviceError, EngineError

_CUDA = 2
"""DLPack's number of CUDA devices."""

_LEGACY_STREAM = 1
"""CUDA's number of the default stream, which libraries without streams use."""

_KINDS = {0: "i", 1: "u", 2: "f"}
"""DLPack's type codes, as numpy's kinds."""


ALIGNMENT = 256
"""Bytes that the address of an engine's tensor is a multiple of."""


class DeviceTensor:
    """A contiguous array of `shape` and `dtype` on `device`, of any values.

    Its memory is given back when nobody holds it any more or by `close`. Other libraries read it
    where it lies through `__cuda_array_interface__`, after `device.synchronize()`.

    constant: the value of a single whole number that came from the host, which engines that have
        it baked in compare with their own.
    within: the tensor in whose memory it lies, `offset_bytes` from its start, and which it keeps
        alive; None for memory of its own. memory: the address of what was allocated.

    Raises DeviceError when there is not enough memory, EngineError for a place outside of `within`
    or one that engines do not take.
    """

    def __init__(
        self,
        device: Device,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        constant: int | None = None,
        *,
        within: DeviceTensor | None = None,
        offset_bytes: int = 0,
    ) -> None:
        self.device = device
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.constant = constant
        self.size_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self._within = within
        if within is None:
            self.address = self.memory = device.allocate(self.size_bytes)
            self._finalizer = weakref.finalize(self, device.free, self.address)
            return
        inside = 0 <= offset_bytes <= within.size_bytes - self.size_bytes
        if offset_bytes % ALIGNMENT or not inside:
            got = f"{self.size_bytes} bytes at {offset_bytes} of {within.size_bytes}"
            raise EngineError("part of a tensor", got, f"inside, at a multiple of {ALIGNMENT}")
        self.address, self.memory = within.address + offset_bytes, within.memory
        self._finalizer = within._finalizer

    @property
    def closed(self) -> bool:
        """Whether its memory was given back."""
        return self.device.closed or not self._finalizer.alive

    def close(self) -> None:
        """Its memory is given back, and with it that of all tensors in the same."""
        self._finalizer()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": int(self.device.stream),
            "version": 3,
        }


class PinnedArray:
    """A host array of `shape` and `dtype`, of any values, page-locked for `device`.

    Its memory is given back when nobody holds it any more, by `close`, or with the device: `values`
    is refused from then on, and a view of it taken before must not outlive it.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._device = device
        kind, items = np.dtype(dtype), int(np.prod(shape))
        size = max(1, items * kind.itemsize)
        address = device.allocate_pinned(size)
        self._finalizer = weakref.finalize(self, device.free_pinned, address)
        memory = memoryview((ctypes.c_byte * size).from_address(address)).cast("B")
        self._values: NDArray[Any] = np.frombuffer(memory, kind, count=items).reshape(shape)

    @property
    def values(self) -> NDArray[Any]:
        """The array where it lies. Raises DeviceError when its memory was given back."""
        self._device.refuse_closed()
        if not self._finalizer.alive:
            raise DeviceError("pinned memory", "was given back", "", "open a new session")
        return self._values

    def close(self) -> None:
        """Its memory is given back."""
        self._finalizer()


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
