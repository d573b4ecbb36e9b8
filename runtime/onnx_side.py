"""ONNX Runtime as what a bundle's engines are compared with, where PyTorch is not installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.bundle import Bundle
from stc.contracts import HIDDEN, SCORE, TOKENS
from stc.engines.engine import Tensor
from stc.manifest import Manifest
from stc.runtime.open import open_tower
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import SCORINGS, Selection

Arrays = dict[str, NDArray[Any]]


class OnnxGraphs:
    """Runs a graph of `tower` on arrays of any float type; outputs are float32."""

    def __init__(self, tower: VisionTower, manifest: Manifest) -> None:
        self._backend = tower.backend
        self._manifest = manifest
        engines = [tower.embed, tower.select, *tower.keys, *tower.updates, tower.project]
        engines += [tower.prune(scoring) for scoring in SCORINGS]
        self._engines = {engine.name: engine for engine in engines}

    def __call__(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        given = {
            port.name: self._backend.to_device(inputs[port.name].astype(port.dtype))
            for port in self._manifest.graphs[graph].inputs
        }
        outputs = self._engines[graph](given)
        return {name: _wide(self._backend.to_host(value)) for name, value in outputs.items()}


@dataclass(frozen=True)
class OnnxFrame:
    """hidden: [T, C] after the last block. scores: float32 [T] of every block that was scored."""

    hidden: NDArray[np.float32]
    scores: list[NDArray[np.float32]]


class OnnxStream:
    """A stream through `tower`; see `stc.runtime.parity_streams.TorchStream`."""

    def __init__(self, tower: VisionTower) -> None:
        self._tower = tower
        self._vision = StreamVision(tower)

    def dense(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.reference(pixel_values).hidden

    def reference(self, pixel_values: NDArray[np.float32]) -> OnnxFrame:
        hidden = self._vision.reference(pixel_values.astype(self._tower.dtype))
        return OnnxFrame(self._host(hidden), [])

    def reuse(
        self,
        pixel_values: NDArray[np.float32],
        recomputed: int,
        selection: Selection,
        forced: Sequence[NDArray[np.int64]] | None = None,
    ) -> OnnxFrame:
        scores: list[NDArray[np.float32]] = []

        def look(graph: str, outputs: Mapping[str, Tensor]) -> None:
            if SCORE in outputs:
                scores.append(self._host(outputs[SCORE]))

        self._vision.observer = look
        try:
            pixels = pixel_values.astype(self._tower.dtype)
            hidden, _ = self._vision.reuse(pixels, recomputed, selection, forced)
        finally:
            self._vision.observer = None
        return OnnxFrame(self._host(hidden), scores)

    def project(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        on_device = self._tower.backend.to_device(hidden.astype(self._tower.dtype))
        return self._host(self._tower.project({HIDDEN: on_device})[TOKENS])

    def _host(self, tensor: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = _wide(self._tower.backend.to_host(tensor))
        return found


@dataclass(frozen=True)
class OnnxSide:
    """ONNX Runtime with a bundle's graphs: single graphs, and whole streams."""

    run_graph: OnnxGraphs
    stream: OnnxStream


def onnx_side(bundle: Bundle) -> OnnxSide:
    """The bundle's own graphs on the CPU. Raises EngineError when onnxruntime is not installed."""
    tower = open_tower(bundle, "cpu")
    return OnnxSide(OnnxGraphs(tower, bundle.manifest), OnnxStream(tower))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
