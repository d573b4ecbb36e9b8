"""A bundle's graphs, loaded on a backend: shared by every stream, holding none of their state."""

from __future__ import annotations

from typing import Any

import numpy as np

from stc import contracts
from stc.engines.engine import Backend, Engine
from stc.manifest import Precision, VisionSpec
from stc.settings import Scoring

NETWORK_DTYPES: dict[Precision, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}


class VisionTower:
    """The engines of one vision tower.

    Raises EngineError when a graph cannot be loaded.
    """

    def __init__(self, backend: Backend, spec: VisionSpec, precision: Precision) -> None:
        self.backend = backend
        self.spec = spec
        self.dtype = NETWORK_DTYPES[precision]
        self.embed = backend.load(contracts.EMBED)
        self.select = backend.load(contracts.SELECT)
        self.keys = [backend.load(contracts.keys_graph(i)) for i in range(spec.blocks)]
        self.updates = [backend.load(contracts.update_graph(i)) for i in range(spec.blocks)]
        self.project = backend.load(contracts.PROJECT)
        self._prune: dict[Scoring, Engine] = {}

    def prune(self, scoring: Scoring) -> Engine:
        """The engine that prunes by `scoring`, loaded when first asked for."""
        if scoring not in self._prune:
            self._prune[scoring] = self.backend.load(contracts.prune_graph(scoring))
        return self._prune[scoring]

    def close(self) -> None:
        """The backend's device is given back, with all that sessions of this tower hold on it."""
        self.backend.close()
