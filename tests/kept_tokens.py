"""Kept tokens of made-up frames, as the small decoders of the tests take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POOLED = 4
"""Tokens of a frame."""
WIDTH = 32
MAX_POSITIONS = 400
"""Of the small decoders."""


def frames(count: int, seed: int = 0) -> list[NDArray[np.float32]]:
    """Kept tokens [POOLED, WIDTH] of `count` frames."""
    random = np.random.default_rng(seed)
    return list(random.standard_normal((count, POOLED, WIDTH)).astype(np.float32))
