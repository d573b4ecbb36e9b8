"""A bundle's engines are built: what is missing, in parallel, resumable at any point."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from stc.bundles.bundle import Bundle
from stc.bundles.engine_folder import TIMINGS
from stc.engines.build.builders import Builders, BuildProgress, Job
from stc.engines.build.compile import Recipe
from stc.engines.gpu.cuda import available_host_bytes
from stc.engines.library.flavour import Flavour, TensorRt
from stc.engines.library.library import (
    EngineEntry,
    EngineLibrary,
    Stamp,
    library_of,
    of_bundle,
    weights_sha256,
)
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import Target, joined_name
from stc.errors import EngineError

BUILDER_BYTES = 768 << 20
"""Host memory of one TensorRT-RTX builder: 330 to 460 MB measured on full-size blocks, doubled."""

UNIFIED_WORKSPACE_BYTES = 512 << 20
"""Most scratch memory of a layer on boards that share memory with the CPU: without a limit TensorRT
tries kernels that take all there is. Full-size blocks need at most 0.12 GiB
(engines/library/preflight.py).
"""


@dataclass(frozen=True)
class BuildPlan:
    """What is to do: engines to build, by file name, and how many are there already.

    dead: engines in the list that nothing can use any more.
    """

    library: EngineLibrary
    missing: dict[str, tuple[EngineSpec, Stamp]]
    present: int
    dead: frozenset[str] = frozenset()


@dataclass(frozen=True)
class BuildFigures:
    """What a build cost: `peak_rss_bytes` is that of the largest builder."""

    engines: int
    size_bytes: int
    peak_rss_bytes: int


def plan_build(
    bundle: Bundle, specs: Sequence[EngineSpec], tensorrt: TensorRt, targets: tuple[Target, ...]
) -> BuildPlan:
    """Which of `specs` have no whole engine of the same stamp in the bundle's library."""
    library = library_of(bundle, joined_name(targets))
    entries = library.entries()
    missing, present = {}, 0
    weights = weights_sha256(bundle)
    for spec in specs:
        stamp = stamp_of(bundle, spec, tensorrt, targets, weights)
        name = f"{spec.stem}.{tensorrt.flavour}.engine"
        entry = entries.get(name)
        if entry is not None and entry.stamp == stamp and library.whole(entry):
            present += 1
        else:
            missing[name] = (spec, stamp)
    dead = {
        name
        for name, entry in entries.items()
        if not (of_bundle(entry.stamp, bundle, weights) and library.whole(entry))
        or (entry.stamp.flavour == tensorrt.flavour and entry.stamp.version != tensorrt.version)
    }
    return BuildPlan(library, missing, present, frozenset(dead))


def stamp_of(
    bundle: Bundle,
    spec: EngineSpec,
    tensorrt: TensorRt,
    targets: tuple[Target, ...],
    weights: str,
) -> Stamp:
    """The stamp of an engine of `spec` built now; `weights` is the bundle's `weights_sha256`."""
    return Stamp(
        graph=spec.graph,
        graph_sha256=bundle.manifest.graphs[spec.graph].file.sha256,
        weights_sha256=weights,
        flavour=tensorrt.flavour,
        version=tensorrt.version,
        targets=tuple(target.name for target in targets),
        precision=bundle.manifest.provenance.precision,
        profiles=spec.profiles,
        baked=spec.baked,
    )


def run_build(
    bundle: Bundle,
    plan: BuildPlan,
    flavour: Flavour,
    targets: tuple[Target, ...],
    progress: BuildProgress,
    *,
    workers: int,
    wide_attention: bool = False,
) -> BuildFigures:
    """Every missing engine of `plan` is built and in the list, and no dead one is.

    Whatever ends it early, what was finished stays. Raises EngineError with the first failure,
    BundleError when a graph or the bundle is not what it was.
    """
    library = plan.library
    unified = any(target.unified for target in targets)
    graphs = {spec.graph: bundle.graph(spec.graph) for spec, _ in plan.missing.values()}
    jobs = deque(
        Job(
            name,
            Recipe(
                spec=spec,
                path=graphs[spec.graph].path,
                graph=bundle.manifest.graphs[spec.graph],
                targets=targets,
                workspace_bytes=UNIFIED_WORKSPACE_BYTES if unified else None,
                timing_cache=library.file(TIMINGS) if flavour == "tensorrt" else None,
                wide_attention=wide_attention,
            ),
            library,
        )
        for name, (spec, _) in plan.missing.items()
    )
    size, peak = 0, 0
    with library.locked(), Builders(flavour, min(workers, len(jobs)), progress) as builders:
        entries = {name: one for name, one in library.entries().items() if name not in plan.dead}
        chains = {known: like for known, like in library.chains().items() if known != flavour}
        library.write(entries, chains, library.unfinished() | plan.dead | plan.missing.keys())
        library.sweep()
        for job, outcome in builders.outcomes(jobs):
            peak = max(peak, outcome.peak_rss_bytes)
            if outcome.file is None:
                failure = bundle.files.named(outcome.failure)
                raise EngineError(job.recipe.spec.stem, failure, "", "what is built stays")
            graphs[job.recipe.spec.graph].check_unchanged()
            bundle.files.check_in_place()
            size += outcome.file.size_bytes
            entries[job.name] = EngineEntry(
                stamp=plan.missing[job.name][1],
                file=outcome.file,
                build_s=outcome.build_s,
                wide_attention=wide_attention,
                acceptance=None,
            )
            library.write(entries, chains, plan.missing.keys() - entries.keys())
            progress.built(job.recipe.spec.stem)
    return BuildFigures(len(plan.missing), size, peak)


def default_workers(flavour: Flavour) -> int:
    """Builders that may work at once: native TensorRT times kernels, so it must be alone."""
    if flavour == "tensorrt":
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), available_host_bytes() // BUILDER_BYTES))
