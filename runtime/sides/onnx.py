"""ONNX Runtime as what a bundle's engines are compared with, where PyTorch is not installed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.side import EngineSide
from stc.program import Side
from stc.runtime.answers.stream_language import open_model
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.sides.tower_stream import TowerStream
from stc.runtime.stream.opening import open_backend, open_tower
from stc.settings import Settings


class OnnxDecoder:
    """The decoder `model`, answering greedily; see `stc.runtime.parity.language.WholeDecoder`."""

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

    graphs: Side
    stream: TowerStream


@dataclass(frozen=True)
class OnnxLanguageSide:
    """ONNX Runtime with a bundle's decoder: single graphs, and the whole of it."""

    graphs: Side
    decoder: OnnxDecoder


def onnx_side(bundle: Bundle, settings: Settings) -> OnnxSide:
    """The bundle's own graphs on the CPU, and a stream of `settings` that keeps every token.

    Raises EngineError when onnxruntime is not installed.
    """
    tower = open_tower(bundle, "cpu")
    graphs = EngineSide(tower.backend, bundle.manifest.graphs, tower.engine)
    return OnnxSide(graphs, TowerStream(tower, settings))


def onnx_language_side(bundle: Bundle) -> OnnxLanguageSide:
    """The bundle's own language graphs on the CPU; raises as `onnx_side`."""
    model = open_model(bundle, open_backend(bundle, "cpu"))
    engines = {one.name: one for one in (model.text_embed, *model.qkv, *model.attend, model.head)}
    graphs = EngineSide(model.backend, bundle.manifest.graphs, engines.__getitem__)
    return OnnxLanguageSide(graphs, OnnxDecoder(model))
