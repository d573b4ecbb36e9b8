"""An array in device memory."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from stc.engines.gpu.device import Device


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
