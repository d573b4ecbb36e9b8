"""Video streams through bundles, from Python: `import stc.runtime as stc` (docs/python.md).

What `__all__` names is promised to stay; the modules behind it are not. Nothing is imported before
it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc.errors import (
        BundleError,
        DeviceError,
        EngineError,
        LanguageError,
        NonFiniteError,
        SettingsError,
        StcError,
        VideoError,
    )
    from stc.runtime.answers.answer import Answer
    from stc.runtime.language.sampling import Sampling
    from stc.runtime.memory.settings import MemorySettings
    from stc.runtime.report import FrameReport
    from stc.runtime.stream.stream import Stream, open
    from stc.runtime.video.source.source import Frame, VideoSource
    from stc.settings import Settings

__all__ = [
    "Answer", "BundleError", "DeviceError", "EngineError", "Frame", "FrameReport",
    "LanguageError", "MemorySettings", "NonFiniteError", "Sampling", "Settings",
    "SettingsError", "StcError", "Stream", "VideoError", "VideoSource", "open",
]  # fmt: skip

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "stc.errors" if name.endswith("Error") else "stc.runtime.stream.stream"
        globals()[name] = found = getattr(import_module(home), name)
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
