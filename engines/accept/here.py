"""Engines compared with ONNX Runtime on this machine's GPU, and rebuilt where they stray."""

from __future__ import annotations

from functools import cache

from stc import contracts, optional
from stc.bundles.bundle import Bundle
from stc.engines.accept.acceptance import (
    AcceptanceReport,
    Comparison,
    accept_engines,
    compared_buckets,
)
from stc.engines.accept.comparison import Tick, chain_cosine, compare_language, compare_vision
from stc.engines.build.build import BuildPlan, run_build
from stc.engines.build.builders import BuildObserver
from stc.engines.gpu.cuda import Cuda, device_facts
from stc.engines.gpu.device import Device
from stc.engines.gpu.recording import Say
from stc.engines.library.flavour import TensorRt
from stc.engines.library.library import EngineEntry, EngineLibrary
from stc.engines.library.likeness import CHAIN_COSINE
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import Target
from stc.engines.side import EngineSide
from stc.engines.tensorrt.backend import TensorRtBackend


def waiting(library: EngineLibrary, tensorrt: TensorRt, device: str | None = None) -> bool:
    """Whether an engine of this flavour, or the whole tower, was not accepted on GPU `device` yet.

    `device` None is any. What was refused counts too: it is compared again, and widened if it was
    not before.
    """
    judged = [entry.accepted_on(device) for entry in _own(library, tensorrt).values()]
    chain = library.chain_on(tensorrt.flavour, device)
    accepted = all(one is not None and one.passed for one in judged)
    return not accepted or chain is None or chain.cosine < CHAIN_COSINE


def accept_here(
    bundle: Bundle,
    library: EngineLibrary,
    tensorrt: TensorRt,
    targets: tuple[Target, ...],
    cuda: Cuda,
    observer: BuildObserver,
    tick: Tick,
    say: Say,
) -> AcceptanceReport:
    """What became of the library's engines; `observer` is told of rebuilds, `tick` of graphs.

    Raises EngineError when onnxruntime is missing or an engine cannot be run.
    """
    fix = "install it with: pip install onnxruntime"
    optional.load("onnxruntime", "onnxruntime", subject="comparison with ONNX Runtime", fix=fix)
    from stc.engines.onnxruntime_backend import OnnxRuntimeBackend

    def compare() -> Comparison:
        own = _own(library, tensorrt)
        by_graph: dict[str, list[EngineEntry]] = {}
        for entry in own.values():
            by_graph.setdefault(entry.stamp.graph, []).append(entry)
        buckets = compared_buckets(own.values())
        language = contracts.language_graphs(
            bundle.manifest.language.blocks if bundle.manifest.language else 0
        )
        specs = [_spec(entry) for entry in own.values() if entry.stamp.graph in language]
        device = Device(cuda)
        with TensorRtBackend(bundle, library, by_graph, tensorrt, device, say) as candidate:
            made = bundle.manifest
            # The candidate's engines stay loaded, ONNX Runtime's one at a time.
            sides = (
                EngineSide(OnnxRuntimeBackend(bundle), made.graphs),
                EngineSide(candidate, made.graphs, cache(candidate.load)),
            )
            graphs = [
                *compare_vision(made, sides, buckets, tick),
                *compare_language(made, sides, specs, tick),
            ]
            chain = chain_cosine(made, sides, buckets.recomputed[0])
            return Comparison(graphs, chain, candidate.workspace_bytes())

    def rebuild(names: list[str]) -> None:
        own = _own(library, tensorrt)
        plan = BuildPlan(library, {name: (_spec(own[name]), own[name].stamp) for name in names}, 0)
        run_build(bundle, plan, tensorrt.flavour, targets, observer, workers=1, wide_attention=True)

    name = device_facts(cuda).name
    return accept_engines(library, tensorrt.flavour, name, compare, rebuild)


def _own(library: EngineLibrary, tensorrt: TensorRt) -> dict[str, EngineEntry]:
    return {
        name: entry
        for name, entry in library.entries().items()
        if entry.stamp.flavour == tensorrt.flavour and entry.stamp.version == tensorrt.version
    }


def _spec(entry: EngineEntry) -> EngineSpec:
    return EngineSpec(entry.stamp.graph, entry.stamp.profiles, entry.stamp.baked)
