"""Indices that graphs give back, looked at before anything on the host goes by them or is told.

A graph that was altered and signed anew, or an engine that computes wrongly, may yield any number:
a negative one would silently take a token from the other end. How many they are, and of which type,
the buffer they were written to has settled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import EngineError

_FIX = "export the bundle again, and build its engines again if it has some"


def check_indices(graph: str, indices: NDArray[Any], of: int, frame_index: int) -> None:
    """`indices` of the frame, at least one, are from 0, ascending, each once, below `of`.

    Raises EngineError naming graph and frame unless they are.
    """
    # Where they ascend, the first and the last speak for all. Counting is the fastest way to ask.
    ascending = not np.count_nonzero(indices[1:] <= indices[:-1])
    if not (ascending and indices[0] >= 0 and indices[-1] < of):
        got = f"indices from {indices.min()} to {indices.max()}"
        if not ascending:
            got += ", not ascending"
        expected = f"{len(indices)} of 0 to {of - 1}, ascending"
        raise EngineError(f"graph {graph}, frame {frame_index}", got, expected, _FIX)
