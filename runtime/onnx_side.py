"""ONNX Runtime as what a bundle's engines are compared with, where PyTorch is not installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.bundle import Bundle
from stc.contracts import HIDDEN, SCORE, TOKENS
from stc.engines.engine import Backend, Engine, Tensor
from stc.runtime.language import LanguageModel
from stc.runtime.open_language import open_model
from stc.runtime.opening import open_backend, open_tower
from stc.runtime.plain_rows import PlainRows
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import SCORINGS, Selection

Arrays = dict[str, NDArray[Any]]


class OnnxGraphs:
    """Runs `engines` of `bundle` on arrays of any float type; outputs are float32."""

    def __init__(self, bundle: Bundle, backend: Backend, engines: list[Engine]) -> None:
        self._backend = backend
        self._entries = bundle.manifest.graphs
        self._engines = {engine.name: engine for engine in engines}

    def __call__(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        given = {
            port.name: self._backend.to_device(inputs[port.name].astype(port.dtype))
            for port in self._entries[graph].inputs
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


class OnnxDecoder:
    """The decoder `model`, answering greedily; see `stc.runtime.parity_language.WholeDecoder`."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._model.embed(ids).astype(np.float32)

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return PlainRows(self._model, len(hidden)).logits(hidden, 0)

    def generate(self, hidden: NDArray[np.float32], most: int) -> list[int]:
        rows = PlainRows(self._model, len(hidden) + most)
        answer = [int(rows.logits(hidden, 0).argmax())]
        while len(answer) < most:
            text = self._model.embed(np.array(answer[-1:]))
            answer.append(int(rows.logits(text, len(hidden) + len(answer) - 1).argmax()))
        return answer


@dataclass(frozen=True)
class OnnxSide:
    """ONNX Runtime with a bundle's graphs: single graphs, and whole streams."""

    run_graph: OnnxGraphs
    stream: OnnxStream


@dataclass(frozen=True)
class OnnxLanguageSide:
    """ONNX Runtime with a bundle's decoder: single graphs, and the whole of it."""

    run_graph: OnnxGraphs
    decoder: OnnxDecoder


def onnx_side(bundle: Bundle) -> OnnxSide:
    """The bundle's own graphs on the CPU. Raises EngineError when onnxruntime is not installed."""
    tower = open_tower(bundle, "cpu")
    engines = [tower.embed, tower.select, *tower.keys, *tower.updates, tower.project]
    engines += [tower.prune(scoring) for scoring in SCORINGS]
    return OnnxSide(OnnxGraphs(bundle, tower.backend, engines), OnnxStream(tower))


def onnx_language_side(bundle: Bundle) -> OnnxLanguageSide:
    """The bundle's own language graphs on the CPU; raises as `onnx_side`."""
    model = open_model(bundle, open_backend(bundle, "cpu"))
    engines = [model.text_embed, *model.qkv, *model.attend, model.head]
    return OnnxLanguageSide(OnnxGraphs(bundle, model.backend, engines), OnnxDecoder(model))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
