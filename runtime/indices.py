"""What graphs give back, looked at before anything on the host goes by it or is told of it.

A graph that was altered and signed anew, or an engine that computes wrongly, may yield any number:
a negative one would silently take a token from the other end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import EngineError

_MEND = "export the bundle again, and build its engines again if it has some"


def check_indices(graph: str, indices: NDArray[Any], count: int, of: int, frame_index: int) -> None:
    """`indices` of the frame are `count` whole numbers from 0, ascending, each once, below `of`.

    Raises EngineError naming graph and frame unless they are.
    """
    check_shape(graph, "indices", indices, (count,), frame_index)
    # Where they ascend, the first and the last speak for all. Counting is the fastest way to ask.
    ascending = not np.count_nonzero(indices[1:] <= indices[:-1])
    if not (ascending and indices.dtype == np.int64 and indices[0] >= 0 and indices[-1] < of):
        least, most = indices.min(), indices.max()
        got = f"indices from {least} to {most}"
        if least >= 0 and most < of:
            got += ", not ascending or not each once"
        raise EngineError(
            _subject(graph, frame_index), got, f"{count} of 0 to {of - 1}, ascending", _MEND
        )


def check_shape(
    graph: str,
    name: str,
    array: NDArray[Any],
    shape: tuple[int, ...],
    frame_index: int,
) -> None:
    """The output `name` of the frame has `shape`. Raises EngineError unless it has."""
    if array.shape != shape:
        got = f"{name} of shape {list(array.shape)}"
        raise EngineError(_subject(graph, frame_index), got, str(list(shape)), _MEND)


def _subject(graph: str, frame_index: int) -> str:
    return f"graph {graph}, frame {frame_index}"
