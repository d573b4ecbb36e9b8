"""What the engines of one backend share: the device, TensorRT, its log, and memory nobody owns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stc.engines.gpu.device import Device
from stc.engines.gpu.tensor import DeviceTensor
from stc.engines.library.flavour import TensorRt
from stc.engines.tensorrt.kernel_cache import KernelCache
from stc.errors import EngineError

Scratch = tuple[int, int]
"""Address and size of the scratch memory contexts work in."""


class Workspace:
    """Scratch memory for every context of a device, as large as the largest asks for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address = 0
        self.size_bytes = 0

    def at_least(self, size_bytes: int) -> Scratch:
        """The memory, grown to `size_bytes` first; growing moves it."""
        if size_bytes > self.size_bytes or not self._address:
            address = self._device.allocate(size_bytes)
            if self._address:
                self._device.free(self._address)
            self._address, self.size_bytes = address, size_bytes
        return self._address, self.size_bytes


class Sinks:
    """Memory for outputs that nobody wants; TensorRT writes them all the same.

    One per output name and shape, for all engines. Two outputs of one engine never share one: an
    engine may read back what it wrote.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tensors: dict[tuple[str, tuple[int, ...], str], DeviceTensor] = {}

    def of(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """The tensor that takes output `name`."""
        key = (name, shape, dtype)
        if key not in self._tensors:
            self._tensors[key] = DeviceTensor(self._device, shape, dtype)
        return self._tensors[key]


@dataclass(frozen=True)
class Shared:
    """One of each for all engines of a backend. rebuild: the stc-build command of the bundle."""

    tensorrt: TensorRt
    device: Device
    log: Any
    workspace: Workspace
    sinks: Sinks
    kernels: KernelCache
    rebuild: str

    def refusal(self, graph: str, got: str, fix: str | None = None) -> EngineError:
        """The error of what TensorRT refused, with the last it said about it.

        `fix` None is to build the engine again. Raises DeviceError instead when the device was
        lost: then the refusal is its consequence.
        """
        if not self.device.capturing:  # whoever captures looks for that itself
            self.device.refuse_lost()
        said = f" ({self.log.last})" if self.log.last else ""
        self.log.last = ""
        again = f"build again with: {self.rebuild}"
        return EngineError(graph, f"TensorRT {got}{said}", "", again if fix is None else fix)


def quiet_log(trt: Any) -> Any:
    """An ILogger that keeps the `last` error TensorRT told of, and prints nothing."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.last = " ".join(msg.split())

    return Logger()
