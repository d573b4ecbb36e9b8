"""What TensorRT-RTX's compiler makes of a torch module's graph, as stc-plan reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from stc.contracts import Contract, Port
from stc.engines.build.compile import Recipe, Watcher, compile_engine
from stc.engines.build.kernels import message_of
from stc.engines.build.layers import EngineLayers, list_layers
from stc.engines.library.library import LADDER, Attention
from stc.engines.library.plan import EngineSpec, Sizes
from stc.engines.library.targets import TARGETS, load_tensorrt
from stc.export.graphs.trace import FreeAxis, trace
from stc.manifest import FileEntry, GraphEntry, PortEntry
from stc.ports import NETWORK_DTYPES


@dataclass(frozen=True)
class HalfGraph:
    """A float16 graph, `content` its file's, with the `entry` that a manifest would have."""

    content: bytes
    entry: GraphEntry

    def layers(
        self, folder: Path, target: str, sizes: Sizes, attention: Attention = LADDER[0]
    ) -> EngineLayers:
        """Its layers at `sizes` of its free axes; its file is written into `folder`."""
        recipe = self._recipe(folder, target, sizes, attention)
        return list_layers(load_tensorrt("tensorrt-rtx"), recipe, lambda *_: None)

    def attention_reads(self, folder: Path, target: str, sizes: Sizes) -> set[str]:
        """The tensors that its kernel of attention reads."""
        watcher = Watcher()
        recipe = self._recipe(folder, target, sizes, LADDER[0])
        compile_engine(load_tensorrt("tensorrt-rtx"), recipe, lambda *_: None, watcher)
        said = message_of(iter(watcher.messages))
        (read,) = re.findall(r"Name: \w*mha\w*, .*?Inputs: \[(.*?)\], Outputs", said)
        return set(re.findall(r"\{ Name: (.*?),", read))

    def engine_bytes(self, folder: Path, target: str, every: tuple[Sizes, ...]) -> list[int]:
        """The size of its engine for all sizes of `every`: a profile each, and one for all."""
        found = []
        for several in (True, False):
            tensorrt = load_tensorrt("tensorrt-rtx")
            tensorrt.several_profiles = several
            recipe = self._recipe(folder, target, every[0], LADDER[0])
            recipe = replace(recipe, spec=EngineSpec("graph", every), detailed=False)
            found.append(compile_engine(tensorrt, recipe, lambda *_: None).nbytes)
        return found

    def _recipe(self, folder: Path, target: str, sizes: Sizes, attention: Attention) -> Recipe:
        path = folder / "graph.onnx"
        path.write_bytes(self.content)
        return Recipe(
            spec=EngineSpec("graph", (sizes,)),
            path=path,
            graph=self.entry,
            targets=(TARGETS[target],),
            attention=attention,
            detailed=True,
        )


def half_graph(
    module: nn.Module, contract: Contract, sizes: Mapping[str, int], free: Sequence[str] = ()
) -> HalfGraph:
    """`module`, made for float16, as a graph whose weights are its own random ones.

    sizes: of the contract's axes; `free` ones may have another in an engine.
    """
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, 0.02, generator=random)
    example = []
    for port in contract.inputs:
        shape = [sizes[symbol] for symbol in port.shape]
        numbers = torch.randn(shape, generator=random)
        if port.dtype == "int64":
            numbers = torch.arange(numbers.numel()).reshape(shape)
        example.append(numbers.half() if port.dtype == "network" else numbers)
    axes = tuple(FreeAxis(symbol, 4096) for symbol in free)
    model = trace(module, contract, tuple(example), axes)
    parameters = dict(module.named_parameters())
    for initializer in model.graph.initializer:
        if initializer.name in parameters:
            initializer.raw_data = parameters[initializer.name].numpy().tobytes()

    def ports(side: tuple[Port, ...]) -> tuple[PortEntry, ...]:
        return tuple(
            PortEntry(
                name=port.name,
                shape=tuple(symbol if symbol in free else sizes[symbol] for symbol in port.shape),
                dtype=str(NETWORK_DTYPES["fp16"]) if port.dtype == "network" else port.dtype,
            )
            for port in side
        )

    file = FileEntry(path="graphs/graph.onnx", sha256="0" * 64, size_bytes=1)
    entry = GraphEntry(file=file, inputs=ports(contract.inputs), outputs=ports(contract.outputs))
    return HalfGraph(model.SerializeToString(), entry)
