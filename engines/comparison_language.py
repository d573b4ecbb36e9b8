"""The language graphs on two backends: every size, on made-up hidden states and rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import IDS, KEY_POSITIONS, QUERY_POSITIONS
from stc.engines.both import Both
from stc.engines.comparison import Tick
from stc.engines.likeness import Compared
from stc.engines.plan import EngineSpec, Sizes, shape_at
from stc.manifest import PortEntry


def compare_language(both: Both, specs: list[EngineSpec], tick: Tick) -> Iterator[Compared]:
    """Those of `specs` that are of the language model, at every size they are built for.

    Raises EngineError when a graph cannot be run.
    """
    language = both.manifest.language
    if language is None:
        return
    for spec in specs:
        random = np.random.default_rng(0)
        ports = both.manifest.graphs[spec.graph].inputs
        calls = [
            (
                sizes,
                {port.name: _values(port, sizes, language.vocabulary, random) for port in ports},
            )
            for sizes in spec.profiles
        ]
        for found, _ in both.run(spec.graph, calls):
            yield found
        tick(spec.graph)


def _values(
    port: PortEntry, sizes: Sizes, vocabulary: int, random: np.random.Generator
) -> NDArray[Any]:
    shape = shape_at(port.shape, sizes)
    if port.name == IDS:
        return random.integers(0, vocabulary, shape)
    if port.name == KEY_POSITIONS:
        # The last quarter of the rows is empty.
        return np.where(np.arange(shape[0]) < 3 * shape[0] // 4, np.arange(shape[0]), -1)
    if port.name == QUERY_POSITIONS:
        return sizes["S"] // 2 + np.arange(shape[0])
    return random.standard_normal(shape)
