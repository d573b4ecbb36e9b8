"""Engines are accepted, rebuilt with more exact attention, or refused: by how they compare.

An engine is compared on the device it will run on; nothing is accepted unseen. A block that
strays is built again, one rung of `library.LADDER` after the other, and the report says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from stc import contracts, optional
from stc.bundles.bundle import Bundle
from stc.engines.accept.comparison import Compared, chain_cosine, compare_language, compare_vision
from stc.engines.build.build import BuildPlan, run_build
from stc.engines.build.builders import BuildProgress
from stc.engines.eager import EngineSide
from stc.engines.gpu.cuda import Cuda, device_facts
from stc.engines.gpu.device import Device, Say
from stc.engines.library.library import (
    CHAIN_COSINE,
    Acceptance,
    Attention,
    Chain,
    EngineEntry,
    EngineLibrary,
)
from stc.engines.library.plan import Buckets, EngineSpec
from stc.engines.library.targets import Flavour, Target, TensorRt
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.method.graphs import SELECT

Entries = dict[str, EngineEntry]


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: every graph at every size, and the end of the chain.

    workspace_bytes: scratch memory of the engines, by the name of their file.
    """

    graphs: list[Compared]
    chain_cosine: float
    workspace_bytes: dict[str, int]


@dataclass(frozen=True)
class Rebuilt:
    """An engine that was built again: how it computes attention now, and its cosine as it was
    first built and now."""

    attention: Attention
    before: float
    after: float


@dataclass(frozen=True)
class AcceptanceReport:
    """What became of the engines.

    rebuilt: engines that are accepted with more exact attention.
    refused: engines that stray all the same, with their cosine.
    """

    compared: int
    rebuilt: dict[str, Rebuilt]
    refused: dict[str, float]
    chain_cosine: float

    @property
    def passed(self) -> bool:
        """Whether every engine and the whole chain are accepted."""
        return not self.refused and self.chain_cosine >= CHAIN_COSINE


def accept_engines(
    library: EngineLibrary,
    flavour: Flavour,
    device: str,
    compare: Callable[[], Comparison],
    rebuild: Callable[[dict[str, Attention]], None],
) -> AcceptanceReport:
    """Every engine of `flavour` in the library has its acceptance on GPU `device` in the list.

    `compare` runs them all; `rebuild` builds the engines it is given the names of once more, with
    attention computed in another way. What strays is rebuilt until it passes or there is none.
    """
    found = compare()
    judged = _judge(library, flavour, device, found)
    first = {name: _judgement(entry).min_cosine for name, entry in judged.items()}
    rebuilt: dict[str, Attention] = {}
    while wanted := _next(judged):
        rebuild(wanted)
        rebuilt |= wanted
        found = compare()
        judged = _judge(library, flavour, device, found)
    accepted, refused = {}, {}
    for name, entry in judged.items():
        judgement = _judgement(entry)
        if not judgement.passed:
            refused[name] = judgement.min_cosine
        elif name in rebuilt:
            accepted[name] = Rebuilt(rebuilt[name], first[name], judgement.min_cosine)
    return AcceptanceReport(len(judged), accepted, refused, found.chain_cosine)


def _next(judged: Entries) -> dict[str, Attention]:
    """Those that stray and can be built in a more exact way, and that way."""
    return {
        name: entry.next_attention
        for name, entry in judged.items()
        if not _judgement(entry).passed and entry.next_attention is not None
    }


def _judgement(entry: EngineEntry) -> Acceptance:
    assert entry.acceptance is not None
    return entry.acceptance


def compared_buckets(entries: Iterable[EngineEntry]) -> Buckets:
    """The counts that `entries` have baked in."""
    baked = [(entry.stamp.graph, entry.stamp.baked) for entry in entries]
    recomputed = {count for graph, count in baked if count is not None and graph == SELECT}
    kept = {count for graph, count in baked if count is not None and graph != SELECT}
    return Buckets(tuple(sorted(recomputed)), tuple(sorted(kept)))


def _judge(library: EngineLibrary, flavour: Flavour, device: str, found: Comparison) -> Entries:
    """The compared engines with their acceptance, which is in the list."""
    entries, judged = library.entries(), {}
    for name, entry in entries.items():
        stamp = entry.stamp
        own = [
            one for one in found.graphs if one.graph == stamp.graph and one.sizes in stamp.profiles
        ]
        if stamp.flavour != flavour or not own:
            continue
        outputs: dict[str, float] = {}
        for one in own:
            for output, cosine in one.cosines.items():
                outputs[output] = min(cosine, outputs.get(output, 1.0))
        judged[name] = entry.model_copy(
            update={
                "workspace_bytes": found.workspace_bytes.get(name),
                "acceptance": Acceptance(
                    passed=all(one.passed for one in own),
                    min_cosine=min(outputs.values()),
                    outputs=outputs,
                    relative_l2=min(max(one.relative_l2 for one in own), 1e9),
                    device=device,
                ),
            }
        )
    chains = {
        **library.listed().chain_cosine,
        flavour: Chain(cosine=found.chain_cosine, device=device),
    }
    library.write({**entries, **judged}, chains)
    return judged


def waiting(library: EngineLibrary, tensorrt: TensorRt, device: str | None = None) -> bool:
    """Whether an engine of this flavour, or the whole tower, was not accepted on GPU `device` yet.

    `device` None is any. What was refused counts too: it is compared again, and rebuilt if it can
    be.
    """
    judged = [entry.accepted_on(device) for entry in _own(library, tensorrt).values()]
    chain = library.listed().chain_on(tensorrt.flavour, device)
    accepted = all(one is not None and one.passed for one in judged)
    return not accepted or chain is None or not chain.passed


def accept_here(
    bundle: Bundle,
    library: EngineLibrary,
    tensorrt: TensorRt,
    targets: tuple[Target, ...],
    cuda: Cuda,
    progress: BuildProgress,
    say: Say,
) -> AcceptanceReport:
    """What became of the library's engines; `progress` is told of rebuilds and graphs.

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
                *compare_vision(made, sides, buckets, progress.compared),
                *compare_language(made, sides, specs, progress.compared),
            ]
            chain = chain_cosine(made, sides, buckets.recomputed[0])
            return Comparison(graphs, chain, candidate.workspace_bytes())

    def rebuild(wanted: dict[str, Attention]) -> None:
        own = _own(library, tensorrt)
        plan = BuildPlan(library, {name: (_spec(own[name]), own[name].stamp) for name in wanted}, 0)
        run_build(bundle, plan, tensorrt.flavour, targets, progress, workers=1, attention=wanted)

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
