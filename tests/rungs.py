"""The rungs of the parity ladder: one tower, computed by numpy, PyTorch and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from stc.engines.engine import Engine
from stc.export.graphs.torch_graphs import TorchGraphs
from stc.export.models.llava_onevision import VisionModel
from stc.export.models.reference import TorchVision
from stc.export.towers.part import VisionWeights
from stc.method.graphs import vision_graphs
from stc.runtime.parity.sides import TowerStream
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.oracle.backend import OracleBackend, OracleEngine
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
        passing = TowerStream(tower, settings)
        for index, pixels in enumerate(frames):
            if settings.is_reference(index):
                frame = passing.reference(pixels)
            else:
                recomputed = settings.recomputed(tower.spec.tokens)
                frame = passing.reuse(pixels, recomputed, settings.selection)
            yield Passed(frame.hidden_states, frame.indices, frame.tokens)

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


def torch_graphs(weights: VisionWeights) -> TorchGraphs:
    """The modules that are exported, float32."""
    return TorchGraphs(vision_graphs(weights.spec.blocks), VisionModel(weights).module)


class TorchBackend(OracleBackend):
    """The modules that are exported, run by PyTorch; its tensors are numpy arrays."""

    name = "torch"

    def __init__(self, weights: VisionWeights) -> None:
        super().__init__(*numpy_weights(weights))
        self._run = torch_graphs(weights)
        self._kinds = vision_graphs(weights.spec.blocks)

    def load(self, graph: str) -> Engine:
        contract = self._kinds[graph]
        names = [port.name for port in contract.inputs]

        def run(*arrays: Array) -> tuple[Array, ...]:
            outputs = self._run.run(graph, dict(zip(names, arrays, strict=True)))
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
