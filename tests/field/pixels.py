"""Pictures of a file as ffmpeg's command gives them: the reference of colours and orientations."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg not installed")


def by_ffmpeg(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """The first picture of `path`, uint8 [height, width, 3]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    return np.frombuffer(done.stdout, np.uint8).reshape(height, width, 3)
