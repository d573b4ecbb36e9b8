"""What a bundle is compared with: PyTorch, or ONNX Runtime on a device that has no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.side import EngineSide
from stc.program import Side
from stc.runtime.answers.stream_language import open_model
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.sides.torch import torch_is_installed, torch_language_side, torch_side
from stc.runtime.sides.tower_stream import TowerStream
from stc.runtime.stream.opening import open_backend, open_tower
from stc.settings import Settings

if TYPE_CHECKING:
    from stc.runtime.sides.torch import TorchLanguage, TorchVision

Against = Literal["PyTorch", "ONNX Runtime"]
PYTORCH: Final = "PyTorch"
ONNX_RUNTIME: Final = "ONNX Runtime"


def other_side(checkpoint: str | None, *, on_device: bool) -> Against:
    """PyTorch, unless engines are compared where there is none and no `checkpoint` asks for it."""
    if on_device and checkpoint is None and not torch_is_installed():
        return ONNX_RUNTIME
    return PYTORCH


@contextmanager
def vision_side(
    bundle: Bundle, checkpoint: str | None, against: Against, settings: Settings
) -> Iterator[tuple[Side, TorchVision | TowerStream]]:
    """The tower of `bundle` on the other side, as single graphs and as whole streams.

    ONNX Runtime runs the bundle's own graphs on the CPU, streams of `settings` that keep every
    token. Raises as `torch_side`, and EngineError when onnxruntime is not installed.
    """
    if against == ONNX_RUNTIME:
        tower = open_tower(bundle, "cpu")
        graphs = EngineSide(tower.backend, bundle.manifest.graphs, tower.engine)
        yield graphs, TowerStream(tower, settings)
        return
    with torch_side(bundle, checkpoint) as side:
        yield side


@contextmanager
def language_side(
    bundle: Bundle, checkpoint: str | None, against: Against
) -> Iterator[tuple[Side, TorchLanguage | OnnxDecoder]]:
    """The decoder of `bundle` on the other side; otherwise as `vision_side`."""
    if against == ONNX_RUNTIME:
        model = open_model(bundle, open_backend(bundle, "cpu"))
        engines = (model.text_embed, *model.qkv, *model.attend, model.head)
        by_name = {engine.name: engine for engine in engines}
        graphs = EngineSide(model.backend, bundle.manifest.graphs, by_name.__getitem__)
        yield graphs, OnnxDecoder(model)
        return
    with torch_language_side(bundle, checkpoint) as side:
        yield side


class OnnxDecoder:
    """The decoder `model`, answering greedily; hidden [m, D] and logits [V] are float32."""

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
