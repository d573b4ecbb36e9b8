"""Kernels TensorRT-RTX compiled on this machine, kept beside the engines for the next process.

TensorRT-RTX compiles an engine's kernels for the GPU when a context is made. It checks itself
whether kernels that were kept are of this GPU, driver and version, and starts anew where not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from stc.engines.library.library import replace_file


class KernelCache:
    """The kernels of all engines beside `file`, one cache for all of their contexts."""

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
