"""The numpy oracle as a backend that can be made to fail, and that watches how it is used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike

from stc.engines.engine import Engine, Tensor
from stc.errors import EngineError
from tests.oracle.backend import OracleBackend
from tests.oracle.layers import ProjectorWeights, TowerWeights


class Failing:
    """An engine of another backend that fails, or spoils its output `spoilt`, while `armed`."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.armed = False
        self.spoilt: str | None = None
        self._engine = engine

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        written = {id(tensor) for tensor in (outputs or {}).values() if tensor is not None}
        assert written.isdisjoint(map(id, inputs.values())), "an input is written into"
        if self.armed and self.spoilt is None:
            raise EngineError(self.name, "the device is gone")
        results = self._engine(inputs, outputs)
        if self.armed and self.spoilt is not None:
            results[self.spoilt][-1] = np.inf
        return results


class Unreliable(OracleBackend):
    """The oracle, with engines that can be made to fail; `allocated_bytes` counts `empty`'s."""

    def __init__(self, tower: TowerWeights, projector: ProjectorWeights) -> None:
        super().__init__(tower, projector)
        self.engines: dict[str, Failing] = {}
        self.allocated_bytes = 0

    def load(self, graph: str) -> Engine:
        self.engines[graph] = Failing(super().load(graph))
        return self.engines[graph]

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        self.allocated_bytes += int(np.prod(shape)) * np.dtype(dtype).itemsize
        return super().empty(shape, dtype)
