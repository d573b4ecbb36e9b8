"""Native TensorRT's timings of kernels, kept in a file between builds and merged among builders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stc.engines.library.library import replace_file


def use_timings(config: Any, file: Path) -> bool:
    """`config` starts from the timings in `file`, if there are any.

    False when they are of another TensorRT or device: then everything is timed anew.
    """
    timings = config.create_timing_cache(_stored(file))
    if config.set_timing_cache(timings, ignore_mismatch=False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return False


def save_timings(config: Any, file: Path) -> None:
    """`file` has the timings of `config` as well as those that other builders wrote meanwhile."""
    timings = config.get_timing_cache()
    if timings is None:
        return
    if others := _stored(file):
        # Another version's are not taken over: the call returns False, and they are replaced.
        timings.combine(config.create_timing_cache(others), ignore_mismatch=False)
    replace_file(file, memoryview(timings.serialize()))


def _stored(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
