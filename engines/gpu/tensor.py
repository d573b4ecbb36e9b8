"""Arrays in device memory, and in host memory that a device copies from and to without staging."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.engines.gpu.device import Device
from stc.errors import DeviceError


class DeviceTensor:
    """A contiguous array of `shape` and `dtype` on `device`, of any values.

    Its memory is given back when nobody holds it any more or by `close`. Other libraries read it
    where it lies through `__cuda_array_interface__`, after `device.synchronize()`.

    constant: the value of a single whole number that came from the host, which engines that have
        it baked in compare with their own.
    """

    def __init__(
        self, device: Device, shape: tuple[int, ...], dtype: DTypeLike, constant: int | None = None
    ) -> None:
        self.device = device
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.constant = constant
        self.size_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.address = device.allocate(self.size_bytes)
        self._finalizer = weakref.finalize(self, device.free, self.address)

    @property
    def closed(self) -> bool:
        """Whether its memory was given back."""
        return self.device.closed or not self._finalizer.alive

    def close(self) -> None:
        """Its memory is given back."""
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
