"""The machine and the GPU a run was made on: what has to stand beside every measured number.

What cannot be read of a GPU is None: boards tell their clocks and power mode in different places,
and some only to root.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from stc import __version__
from stc.engines.gpu.cuda import Cuda, device_facts

_DISTRIBUTIONS = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "av",
)
_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")  # Jetson: its cpuinfo names no model
_SYSTEM = Path("/")
_WAIT_S = 5.0


def machine_facts() -> dict[str, Any]:
    """Platform, processor, Python and versions of the installed libraries, ready for JSON."""
    return {
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"stc": __version__, **_versions()},
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):  # what is not installed took no part
            versions[name] = metadata.version(name)
    return versions


def _processor() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    if _BOARD.exists():
        return _BOARD.read_text(errors="replace").strip("\0 \n")
    return platform.processor() or "unknown"


def gpu_facts(cuda: Cuda, allocated_bytes: int, system: Path = _SYSTEM) -> dict[str, Any]:
    """Name, memory, driver, clock and power mode of the current GPU, ready for JSON.

    `allocated_bytes` is what this process asked for itself; engines' weights come on top. `system`
    is where the system's files stand. Raises DeviceError when the driver fails.
    """
    facts = device_facts(cuda)
    return {
        "name": facts.name,
        "board": facts.board or None,
        "compute_capability": "{}.{}".format(*facts.compute_capability),
        "memory_bytes": facts.total_bytes,
        "memory_used_bytes": facts.total_bytes - facts.free_bytes,
        "memory_allocated_bytes": allocated_bytes,
        "cuda_driver": cuda.call("cudaDriverGetVersion"),
        "cuda_runtime": cuda.call("cudaRuntimeGetVersion"),
        "clock_mhz": _clock_mhz(system),
        "power_mode": power_mode(),
    }


def _clock_mhz(system: Path) -> float | None:
    """The GPU's clock now: from the kernel on a Jetson, from nvidia-smi elsewhere."""
    for governor in sorted((system / "sys/class/devfreq").glob("*")):
        if any(name in governor.name for name in ("gpu", "ga10b", "gv11b")):
            # Some only tell root, or not while the GPU sleeps.
            with suppress(OSError, ValueError):
                return float((governor / "cur_freq").read_text()) / 1e6
    asked = _said("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits")
    try:
        return None if asked is None else float(asked.splitlines()[0])
    except (ValueError, IndexError):
        return None


def power_mode() -> str | None:
    """What nvpmodel calls it on a Jetson, the power limit elsewhere."""
    mode = _said("nvpmodel", "-q")
    if mode is not None:
        return mode.splitlines()[0].removeprefix("NV Power Mode:").strip() or None
    return _said("nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader")


def _said(program: str, *arguments: str) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        ran = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_WAIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (ran.stdout.strip() or None) if ran.returncode == 0 else None


def peak_rss_bytes() -> int:
    """The most resident memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
