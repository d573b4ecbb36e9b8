"""The libraries that video takes: PyAV reads and writes it, Pillow resizes and draws.

Both come with the extra `video`, and are asked for before anything is opened or computed.
"""

from __future__ import annotations

from stc import optional
from stc.errors import VideoError

FIX = "pip install 'stc[video]'"


def require_av() -> None:
    """PyAV is installed, and new enough. Raises VideoError."""
    optional.load("av", "av", subject="PyAV", fix=FIX, error=VideoError)


def require_pillow() -> None:
    """Pillow is installed, and new enough. Raises VideoError."""
    for module in ("PIL", "PIL.Image"):
        optional.load(module, "pillow", subject="Pillow", fix=FIX, error=VideoError)
