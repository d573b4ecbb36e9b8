"""The rungs of the parity ladder: one tower, computed by numpy, PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import HIDDEN, HIDDEN_OUT, TOKENS
from stc.engines.engine import Engine, Tensor
from stc.engines.oracle_backend import OracleBackend, OracleEngine
from stc.export.checkpoint import VisionWeights
from stc.export.reference import TorchVision
from stc.export.torch_graphs import TorchGraphs
from stc.runtime.tower import VisionTower
from stc.runtime.vision import StreamVision
from stc.settings import Settings
from tests.vision_cases import Exported, numpy_weights

Array = NDArray[Any]


@dataclass(frozen=True)
class Passed:
    """A frame's way through a tower.

    hidden_states: [T, C] after the embedding, where it shows, and after every block.
    indices: of every block; all T on a reference frame. tokens: [n, D].
    """

    hidden_states: list[Array]
    indices: list[Array]
    tokens: Array


Stream = Callable[[Iterable[Array], Settings], Iterator[Passed]]
"""pixel_values of every frame, settings -> what became of each."""


def through_graphs(tower: VisionTower) -> Stream:
    """Frames through the graphs of `tower`."""

    def stream(frames: Iterable[Array], settings: Settings) -> Iterator[Passed]:
        backend, vision = tower.backend, StreamVision(tower)
        states: list[Array] = []

        def look(_: str, outputs: Mapping[str, Tensor]) -> None:
            shown = (outputs[name] for name in (HIDDEN, HIDDEN_OUT) if name in outputs)
            states.extend(map(backend.to_host, shown))

        vision.observer = look
        everything = [np.arange(tower.spec.tokens)] * tower.spec.blocks
        for index, pixels in enumerate(frames):
            states.clear()
            if settings.is_reference(index):
                hidden, indices = vision.reference(pixels), everything
            else:
                recomputed = settings.recomputed(tower.spec.tokens)
                hidden, chosen = vision.reuse(pixels, recomputed, settings.selection)
                indices = [backend.to_host(one) for one in chosen]
            tokens = backend.to_host(tower.project({HIDDEN: hidden})[TOKENS])
            yield Passed(list(states), indices, tokens)

    return stream


def through_transformers(weights: Any) -> Stream:
    """Frames through transformers' layers; one tower per depth shows every block's output."""
    spec = weights.spec

    def stream(frames: Iterable[Array], settings: Settings) -> Iterator[Passed]:
        depths = [
            TorchVision(replace(weights, spec=spec.model_copy(update={"blocks": blocks})))
            for blocks in range(1, spec.blocks + 1)
        ]
        for index, pixels in enumerate(frames):
            if settings.is_reference(index):
                outcomes = [tower.reference(pixels) for tower in depths]
            else:
                recomputed = settings.recomputed(spec.tokens)
                outcomes = [tower.reuse(pixels, recomputed, settings.selection) for tower in depths]
            states = [outcome.hidden for outcome in outcomes]
            yield Passed(states, outcomes[-1].indices, depths[-1].project(states[-1]))

    return stream


class TorchBackend(OracleBackend):
    """The modules that are exported, run by PyTorch; its tensors are numpy arrays."""

    name = "torch"

    def __init__(self, weights: VisionWeights) -> None:
        super().__init__(*numpy_weights(weights))
        self._run = TorchGraphs(weights)
        self._kinds = contracts.vision_graphs(weights.spec.blocks)

    def load(self, graph: str) -> Engine:
        contract = self._kinds[graph]
        names = [port.name for port in contract.inputs]

        def run(*arrays: Array) -> tuple[Array, ...]:
            outputs = self._run(graph, dict(zip(names, arrays, strict=True)))
            return tuple(outputs[port.name] for port in contract.outputs)

        return OracleEngine(graph, contract, run)


def _torch_tower(weights: VisionWeights) -> VisionTower:
    return VisionTower(TorchBackend(weights), weights.spec, "fp32")


RUNGS: dict[str, Callable[[Exported], Stream]] = {
    "oracle": lambda case: through_graphs(case.oracle()),
    "torch": lambda case: through_graphs(_torch_tower(case.weights)),
    "transformers": lambda case: through_transformers(case.weights),
    "onnxruntime": lambda case: through_graphs(case.onnxruntime()),
}
"""Every rung by its name."""
