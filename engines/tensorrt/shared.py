"""What the engines of one backend share: TensorRT, its log, kernels, memory nobody owns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stc.engines.gpu.device import Device
from stc.engines.gpu.tensor import DeviceTensor
from stc.engines.library.library import replace_file
from stc.engines.library.targets import TensorRt
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


class KernelCache:
    """Kernels that TensorRT-RTX compiled for this GPU, kept in `file` for the next process.

    One cache for all contexts. TensorRT-RTX checks itself whether what was kept is of this GPU,
    driver and version, and starts anew where not.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kernels: Any = None
        self._kept = ""

    def attach(self, runtime_config: Any) -> None:
        """A context of `runtime_config` takes its kernels from here, and leaves new ones."""
        if self._kernels is None:
            self._kernels = runtime_config.create_runtime_cache()
            try:
                content = self._file.read_bytes()
            except OSError:  # none yet, or another user's: then they are compiled
                content = b""
            if content and self._kernels.deserialize(content):
                self._kept = hashlib.sha256(content).hexdigest()
        runtime_config.set_runtime_cache(self._kernels)

    def save(self) -> None:
        """The next process finds the kernels there are now. Raises OSError.

        To be called while the contexts live.
        """
        if self._kernels is None:
            return
        content = memoryview(self._kernels.serialize())
        digest = hashlib.sha256(content).hexdigest()
        if digest != self._kept:
            replace_file(self._file, content)
            self._kept = digest


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
