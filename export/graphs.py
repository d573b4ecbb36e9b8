"""Writes every graph of the `stc` family for one checkpoint and checks each against torch.

Weights are read, written and checked block by block; one block is in memory at a time. Two
frames walk through the tower as it is written: a reference frame and a reuse frame of it, so
every graph is checked on the activations it will see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from stc import contracts
from stc.contracts import Contract, Port
from stc.errors import ExportError
from stc.export.check import GraphCheck
from stc.export.graph import FreeAxis, bind, free_count, trace
from stc.export.modules import Select
from stc.export.prune_module import Prune
from stc.export.tower import EMBED_TENSORS, Tower, keys_tensors, update_tensors
from stc.export.weights_file import Span, WeightsFile
from stc.manifest import Precision, VisionSpec
from stc.operators import GraphKind
from stc.settings import SCORINGS, Settings

FUSED = "_fused"
"""Ending of the names of files whose graphs only ONNX Runtime reads."""

Tick = Callable[[str], None]
"""Called with a graph's name when it has been written and checked."""


@dataclass
class GraphWriter:
    """Writes graphs into `folder`, their weights into `weights`."""

    folder: Path
    weights: WeightsFile
    precision: Precision
    free: tuple[FreeAxis, ...]
    tick: Tick
    _templates: dict[str, onnx.ModelProto] = field(default_factory=dict)

    def write(
        self,
        name: str,
        module: nn.Module,
        contract: Contract,
        inputs: tuple[Tensor, ...],
        *,
        kind: str,
        keys: dict[str, str] | None = None,
        count: int | None = None,
    ) -> GraphCheck:
        """The check of graph `name`, once written; `keys` name its parameters' tensors.

        `kind` names the structure: modules of one kind are traced once. `count` is the default
        of the graph's free K. Afterwards `module` computes in float32.
        """
        if kind not in self._templates:
            ports = [port for port in contract.inputs if port.name != contracts.COUNT]
            example = tuple(map(self._network, ports, inputs))
            template = trace(module, contract, example, self.free)
            if count is not None:
                free_count(template, contract, count)
            self._templates[kind] = template
        spans = {
            parameter: self.weights.add((keys or {}).get(parameter, parameter), value.numpy())
            for parameter, value in module.named_parameters()
        }
        module.float()
        return self.finish(name, contract, self._templates[kind], spans)

    def write_fused(
        self, name: str, contract: Contract, template: onnx.ModelProto, keys: Mapping[str, str]
    ) -> GraphCheck:
        """The check of graph `name`, once it stands a second time, as NAME_fused.onnx.

        `template` has operators that only ONNX Runtime knows; `keys` name the tensors of its
        parameters, which are stored already.
        """
        spans = {parameter: self.weights.span(key) for parameter, key in keys.items()}
        return self._bound(f"{name}{FUSED}", name, contract, template, spans, "fused_graphs")

    def template(self, kind: str) -> onnx.ModelProto:
        """What graphs of `kind` are bound from, once one was written."""
        return self._templates[kind]

    def finish(
        self, name: str, contract: Contract, template: onnx.ModelProto, spans: Mapping[str, Span]
    ) -> GraphCheck:
        """The check of graph `name`, once written: `template` with its weights at `spans`."""
        return self._bound(name, name, contract, template, spans, "graphs")

    def _bound(
        self,
        stem: str,
        name: str,
        contract: Contract,
        template: onnx.ModelProto,
        spans: Mapping[str, Span],
        kind: GraphKind,
    ) -> GraphCheck:
        model = bind(template, name, spans, self.weights.path.name, kind=kind)
        path = self.folder / f"{stem}.onnx"
        path.write_bytes(model.SerializeToString())
        return GraphCheck(path, contract, self.precision)

    def _network(self, port: Port, tensor: Tensor) -> Tensor:
        half = self.precision == "fp16" and port.dtype == "network"
        return tensor.half() if half else tensor


@dataclass
class Walk:
    """The hidden states [T, C] of the two frames that walk through the tower."""

    reference: Tensor
    reuse: Tensor


def write_graphs(writer: GraphWriter, tower: Tower, settings: Settings) -> None:
    """Every graph of the tower stands in the writer's folder and equals torch.

    Raises ExportError naming graph, output and difference.
    """
    spec = tower.weights.spec
    recomputed = settings.recomputed(spec.tokens)
    walk = _embed(writer, tower)
    _select(writer, spec, recomputed)
    for block in range(spec.blocks):
        _block(writer, tower, block, walk, recomputed)
    _project(writer, tower, walk)
    _prune(writer, spec, settings.kept(spec.pooled))


def _embed(writer: GraphWriter, tower: Tower) -> Walk:
    """The first hidden states: a frame, and the same frame with its upper half changed."""
    side = tower.weights.spec.image_size
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, side, side, generator=generator) * 2 - 1
    second = first.clone()
    second[:, : side // 2] = torch.rand(3, side // 2, side, generator=generator) * 2 - 1
    module = tower.embed()
    check = writer.write(
        contracts.EMBED,
        module,
        contracts.EMBED_CONTRACT,
        (first,),
        kind="embed",
        keys=EMBED_TENSORS,
    )
    (reference,) = check.compare(module, (first,))
    (reuse,) = check.compare(module, (second,))
    writer.tick(contracts.EMBED)
    return Walk(reference, reuse)


def _select(writer: GraphWriter, spec: VisionSpec, recomputed: int) -> None:
    score = torch.rand(spec.tokens, generator=torch.Generator().manual_seed(1))
    check = writer.write(
        contracts.SELECT,
        Select(recomputed),
        contracts.SELECT_CONTRACT,
        (score,),
        kind="select",
        count=recomputed,
    )
    for count in {1, recomputed, spec.tokens}:
        check.compare(Select(count), (score,), {contracts.COUNT: count})
    writer.tick(contracts.SELECT)


def _block(writer: GraphWriter, tower: Tower, block: int, walk: Walk, recomputed: int) -> None:
    spec = tower.weights.spec
    everything = torch.arange(spec.tokens)
    blank_key = torch.ones(spec.heads, spec.tokens, spec.head_width)
    blank_value, blank_residual = torch.zeros_like(blank_key), torch.zeros_like(walk.reference)

    name = contracts.keys_graph(block)
    keys = tower.keys(block)
    check = writer.write(
        name,
        keys,
        contracts.KEYS_CONTRACT,
        (walk.reference, blank_key),
        kind="keys",
        keys=keys_tensors(block),
    )
    ref_key, _ = check.compare(keys, (walk.reference, blank_key))
    key, score = check.compare(keys, (walk.reuse, ref_key))
    writer.tick(name)

    name = contracts.update_graph(block)
    update = tower.update(block)
    check = writer.write(
        name,
        update,
        contracts.UPDATE_CONTRACT,
        (walk.reference, ref_key, blank_value, blank_residual, everything),
        kind="update",
        keys=update_tensors(block),
    )
    full = (walk.reference, ref_key, blank_value, blank_residual, everything)
    walk.reference, ref_value, ref_residual = check.compare(update, full)
    indices = Select(recomputed)(score)
    walk.reuse, _, _ = check.compare(update, (walk.reuse, key, ref_value, ref_residual, indices))
    if not bool(torch.isfinite(walk.reuse).all()):
        raise ExportError(name, "NaN or infinite output", "finite numbers", "check the weights")
    writer.tick(name)


def _project(writer: GraphWriter, tower: Tower, walk: Walk) -> None:
    module = tower.project()
    keys = {name: f"projector.{name}" for name, _ in module.named_parameters()}
    check = writer.write(
        contracts.PROJECT,
        module,
        contracts.PROJECT_CONTRACT,
        (walk.reference,),
        kind="project",
        keys=keys,
    )
    check.compare(module, (walk.reference,))
    check.compare(module, (walk.reuse,))
    writer.tick(contracts.PROJECT)


def _prune(writer: GraphWriter, spec: VisionSpec, kept: int) -> None:
    tokens = _separable_tokens(spec.pooled, spec.language_width)
    for scoring in SCORINGS:
        name = contracts.prune_graph(scoring)
        memory = contracts.memory_width(scoring, spec.language_width)
        mean = torch.rand(memory, generator=torch.Generator().manual_seed(2))
        check = writer.write(
            name,
            Prune(scoring, kept),
            contracts.PRUNE_CONTRACT,
            (tokens, mean, torch.tensor([1.0])),
            kind=name,
            count=kept,
        )
        for count, history in ((kept, 0.0), (kept, 5.0), (1, 5.0), (spec.pooled, 5.0)):
            check.compare(
                Prune(scoring, count),
                (tokens, mean, torch.tensor([history])),
                {contracts.COUNT: count},
            )
        writer.tick(name)


def _separable_tokens(pooled: int, width: int) -> Tensor:
    """tokens [n, D] whose channels' variances are far apart: `gaussian` ranks channels by variance,
    and where two are equal up to rounding, two correct implementations may rank them unlike."""
    generator = torch.Generator().manual_seed(3)
    column = torch.randn(pooled, generator=generator)
    shuffled = [column[torch.randperm(pooled, generator=generator)] for _ in range(width)]
    spread = 1.0 + torch.randperm(width, generator=generator) / width
    return torch.stack(shuffled, dim=1) * spread + torch.randn(width, generator=generator)
