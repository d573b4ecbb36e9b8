"""The machine a run was made on: what has to stand beside every measured number."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from stc import __version__

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
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # what is not installed took no part
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
