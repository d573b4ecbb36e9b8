"""How a whole model is compared with transformers' own, by the export and by parity alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import Precision
from stc.method.difference import difference

TEXT = 8
"""Text tokens before the video, and as many after it, where there is no prompt."""
ANSWER = 8
"""Most text tokens of the greedy answer."""
PIXEL = 1e-5
"""Largest allowed difference of a pixel value: both sides do the same arithmetic."""
RELATIVE_L2: dict[Precision, float] = {"fp32": 1e-5, "fp16": 5e-2}
"""Largest allowed |bundle - transformers| / |transformers| at the end of the whole chain."""
ROUNDING: dict[Precision, float] = {"fp32": 2.0**-23, "fp16": 2.0**-10}
"""Spacing of numbers of a precision, relative to them."""
ROUNDINGS = 64.0
"""Allowed where RELATIVE_L2 is not enough, as many roundings of the model's inputs: they are
rounded anew in every layer of a deep network, and a trained one can magnify that."""


def whole_limit(
    precision: Precision,
    expected: NDArray[Any],
    got: NDArray[Any],
    moves: Callable[[float], float],
) -> float:
    """The largest relative L2 by which `got` may differ from `expected`.

    `moves` tells by what `expected` moves when the model's inputs are rounded otherwise, given the
    spacing of numbers. It is asked only where that decides.
    """
    limit = RELATIVE_L2[precision]
    if expected.shape != got.shape or difference(expected, got).relative_l2 <= limit:
        return limit
    return max(limit, ROUNDINGS * moves(ROUNDING[precision]))


def pixels_apart(expected: NDArray[np.float32], got: NDArray[np.floating]) -> float:
    """Largest difference of a pixel value; infinite where the pictures have other sizes."""
    if expected.shape != got.shape:
        return float("inf")
    return float(np.abs(expected - got).max())


def rounded_otherwise(array: NDArray[Any], rounding: float) -> NDArray[Any]:
    """`array` with every number moved by up to half of `rounding`, relative to it."""
    ways = np.random.default_rng(0).random(array.shape) - 0.5
    moved: NDArray[Any] = (array * (1.0 + rounding * ways)).astype(array.dtype)
    return moved
