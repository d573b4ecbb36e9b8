"""The CUDA runtime with every returned status looked at.

`cuda.bindings.runtime` returns (status, values...) and never raises; a status nobody reads is an
error that shows up three calls later. It has wheels for aarch64 and Python 3.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stc import optional
from stc.errors import DeviceError, EngineError

_BOARD = Path("/proc/device-tree/model")
_COMPATIBLE = Path("/proc/device-tree/compatible")

_START_AGAIN = "open the tower again; if that fails as well, start the program again"
"""CUDA asks for a new process after these; some drivers reset the context all the same."""

_MENDS = {
    "cudaErrorInsufficientDriver": "there is no NVIDIA driver, or one older than cuda-bindings: "
    "update it, or install bindings of its CUDA major version ('cuda-bindings<13' on JetPack 6)",
    "cudaErrorNoDevice": "nvidia-smi shows the GPUs there are; without one use --backend "
    "onnxruntime",
    "cudaErrorMemoryAllocation": "close other programs that use the GPU, or open fewer streams",
    "cudaErrorIllegalAddress": _START_AGAIN,
    "cudaErrorLaunchFailure": _START_AGAIN,
    "cudaErrorECCUncorrectable": _START_AGAIN,
    "cudaErrorDevicesUnavailable": "another program holds the GPU for itself: close it",
}
"""What fixes an error, by its name."""


class Cuda:
    """Calls into `runtime`: the module cuda.bindings.runtime, or a mock of it."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def call(self, function: str, *arguments: Any) -> Any:
        """What `function` returned after its status: nothing, a value or a tuple of values.

        Raises DeviceError naming the function, the status and what fixes it, if that is known.
        """
        status, *values = getattr(self.runtime, function)(*arguments)
        if int(status) != 0:
            raise DeviceError(function, self.told(status), "", _MENDS.get(self._name(status), ""))
        return values[0] if len(values) == 1 else tuple(values) or None

    def told(self, status: Any) -> str:
        """Name and meaning of a status."""
        _, text = self.runtime.cudaGetErrorString(status)
        return f"{self._name(status)} ({text.decode()})"

    def _name(self, status: Any) -> str:
        _, name = self.runtime.cudaGetErrorName(status)
        return str(name.decode())


@dataclass(frozen=True)
class DeviceFacts:
    """A GPU as the driver describes it, and the board it sits on ("" when not told).

    board: what the device tree calls it; modules: what it is compatible with, a Jetson's module
        among them, whoever made the board.
    """

    name: str
    compute_capability: tuple[int, int]
    total_bytes: int
    free_bytes: int
    unified: bool
    board: str
    modules: str = ""


def load_cuda() -> Cuda:
    """The CUDA runtime. Raises EngineError with the command that installs its bindings."""
    fix = (
        "install it with: pip install cuda-bindings, of the driver's CUDA major version "
        "('cuda-bindings<13' on JetPack 6)"
    )
    return Cuda(optional.load("cuda.bindings.runtime", "cuda-bindings", subject="CUDA", fix=fix))


def device_facts(cuda: Cuda, index: int = 0) -> DeviceFacts:
    """Device `index`, made current. Raises DeviceError when there is none or no driver."""
    cuda.call("cudaSetDevice", index)
    names = cuda.runtime.cudaDeviceAttr
    attributes = (
        names.cudaDevAttrComputeCapabilityMajor,
        names.cudaDevAttrComputeCapabilityMinor,
        names.cudaDevAttrIntegrated,
    )
    major, minor, integrated = (
        int(cuda.call("cudaDeviceGetAttribute", attribute, index)) for attribute in attributes
    )
    free, total = cuda.call("cudaMemGetInfo")
    properties = cuda.call("cudaGetDeviceProperties", index)
    if integrated:
        # The driver of a Jetson counts the page cache as used; the kernel gives it back on demand.
        free = max(free, available_host_bytes())
    return DeviceFacts(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=(major, minor),
        total_bytes=int(total),
        free_bytes=min(int(free), int(total)),
        unified=bool(integrated),
        board=_told_by(_BOARD),
        modules=_told_by(_COMPATIBLE),
    )


def found_device(load: Callable[[], Cuda] = load_cuda) -> tuple[DeviceFacts | None, str]:
    """This machine's GPU, or None and why it cannot be used; `load` gives the runtime."""
    try:
        return device_facts(load()), ""
    except EngineError as error:
        return None, str(error)


def _told_by(file: Path) -> str:
    """The text of a file of the device tree, "" where there is none."""
    try:
        return file.read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def available_host_bytes() -> int:
    """Memory the kernel can give to processes without swapping."""
    if available := stated_bytes(Path("/proc/meminfo"), "MemAvailable"):
        return available
    raise DeviceError("/proc/meminfo", "has no MemAvailable")


def stated_bytes(file: Path, field: str) -> int:
    """What `field` of a file of /proc says, which is in kB there; 0 where there is none."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
