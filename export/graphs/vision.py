"""Writes every vision graph of one checkpoint and checks each against torch.

Weights are read, written and checked block by block; one block is in memory at a time. Frames walk
through the tower as it is written (`stc.method.family.check_program`): a graph is written when it
is first run, and checked on the activations it will see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor, nn

from stc.contracts import COUNT, Contract, Port
from stc.errors import ExportError
from stc.export.graphs.check import GraphCheck
from stc.export.graphs.torch_graphs import TorchGraphs
from stc.export.graphs.trace import FreeAxis, bind, free_count, trace
from stc.export.graphs.weights_file import Span, WeightsFile
from stc.export.graphs.written_graphs import WrittenGraphs
from stc.export.models.llava_onevision import VisionModel
from stc.manifest import Precision, VisionSpec
from stc.method.difference import judged
from stc.method.family import changed_frames, check_program, history_of, prune_program
from stc.method.graphs import TOKENS, kind_of, memory_width, vision_graphs
from stc.program import Arrays, Call, run_paired
from stc.settings import SCORINGS, Settings

RANK_GAP = 1e-5
"""How far a choice may miss the best one as torch ranks it: less is rounding."""

FUSED, INT4 = "fused", "int4"
"""Names of variants."""

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
        template = self.template(kind, module, contract, inputs, count)
        spans = {
            parameter: self.weights.add((keys or {}).get(parameter, parameter), value.numpy())
            for parameter, value in module.named_parameters()
        }
        module.float()
        return self.finish(name, contract, template, spans)

    def template(
        self,
        kind: str,
        module: nn.Module,
        contract: Contract,
        inputs: tuple[Tensor, ...],
        count: int | None = None,
    ) -> onnx.ModelProto:
        """What graphs of `kind` are bound from: the trace of the first `module` of that kind."""
        if kind not in self._templates:
            ports = [port for port in contract.inputs if port.name != COUNT]
            example = tuple(map(self._network, ports, inputs))
            template = trace(module, contract, example, self.free)
            if count is not None:
                free_count(template, contract, count)
            self._templates[kind] = template
        return self._templates[kind]

    def finish(
        self,
        name: str,
        contract: Contract,
        template: onnx.ModelProto,
        spans: Mapping[str, Span],
        variant: str = "",
    ) -> GraphCheck:
        """The check of graph `name`, once written: `template` with its weights at `spans`.

        With `variant` it is the graph of that, which may have operators of ONNX Runtime's own.
        """
        model = bind(template, name, spans, self.weights.path.name, own=bool(variant))
        path = self.folder / graph_file(name, variant)
        path.write_bytes(model.SerializeToString())
        return GraphCheck(path, contract, self.precision)

    def _network(self, port: Port, tensor: Tensor) -> Tensor:
        half = self.precision == "fp16" and port.dtype == "network"
        return tensor.half() if half else tensor


def graph_file(name: str, variant: str = "") -> str:
    """The name of the file of graph `name`, or of its like in `variant`."""
    return f"{name}_{variant}.onnx" if variant else f"{name}.onnx"


def write_graphs(writer: GraphWriter, model: VisionModel, settings: Settings) -> None:
    """Every vision graph of the model stands in the writer's folder and equals torch.

    Raises ExportError naming graph, output and difference.
    """
    spec, precision = model.weights.spec, writer.precision
    contracts = vision_graphs(spec.blocks)
    # The first count of each is the default in its graph.
    recomputed = dict.fromkeys((settings.recomputed(spec.tokens), 1, spec.tokens))
    kept = dict.fromkeys((settings.kept(spec.pooled), 1, spec.pooled))
    tower_program = check_program(spec, precision, tuple(recomputed))
    prune = prune_program(spec, precision, tuple(kept))
    written = WrittenGraphs(writer.folder, precision, contracts)

    def write(graph: str, module: nn.Module, inputs: tuple[Tensor, ...], count: int) -> None:
        if graph in written.checks:
            return
        kind, _ = kind_of(graph)
        keys = model.stored_as(graph, module)
        written.checks[graph] = writer.write(
            graph, module, contracts[graph], inputs, kind=kind, keys=keys, count=count or None
        )

    half = precision == "fp16"
    torch_graphs = TorchGraphs(contracts, model.module, half=half, made=write)

    def judge(call: Call, inputs: Arrays, expected: Arrays, got: Arrays) -> None:
        for one in judged(call.graph, inputs, expected, got):
            if one.gap is None:
                moved = partial(torch_graphs.run, call.graph, inputs)
                written.checks[call.graph].judge(one.output, one.expected, one.got, moved)
            elif not one.gap <= RANK_GAP:
                got_gap = f"a choice {one.gap:.3g} worse than the best"
                raise ExportError(f"{call.graph}: {one.output}", got_gap, f"at most {RANK_GAP:g}")

    for program, inputs in (
        (tower_program, changed_frames(spec)),
        (prune, _to_prune(spec)),
    ):
        run_paired(program, torch_graphs, written, inputs, judge, ended=writer.tick)


def _to_prune(spec: VisionSpec) -> Arrays:
    """Inputs of `prune_program`: tokens [n, D] whose channels' variances are far apart, and means.

    `gaussian` ranks channels by variance, and where two are equal up to rounding, two correct
    implementations may rank them unlike.
    """
    random, width = np.random.default_rng(3), spec.language_width
    column = random.standard_normal(spec.pooled)
    shuffled = np.stack([random.permutation(column) for _ in range(width)], axis=1)
    tokens = shuffled * (1.0 + random.permutation(width) / width) + random.standard_normal(width)
    widths = {memory_width(scoring, width) for scoring in SCORINGS}
    means = {history_of(one): random.random(one) for one in widths}
    return {name: one.astype(np.float32) for name, one in {TOKENS: tokens, **means}.items()}
