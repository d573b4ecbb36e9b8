"""A bundle's engines are built: what is missing, in parallel, resumable at any point.

Whether this machine can build for a target from a bundle is found before, and why not in one line.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stc.bundles.bundle import Bundle
from stc.bundles.contents import TIMINGS
from stc.engines.build.builders import Builders, BuildProgress, Job
from stc.engines.build.compile import Recipe
from stc.engines.gpu.cuda import DeviceFacts, available_host_bytes
from stc.engines.library.library import (
    LADDER,
    Attention,
    EngineEntry,
    EngineLibrary,
    Stamp,
    library_of,
    of_bundle,
    weights_sha256,
)
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import (
    FLAVOURS,
    Flavour,
    Target,
    TensorRt,
    joined_name,
    load_tensorrt,
    target_of,
    targets_of,
)
from stc.errors import EngineError
from stc.optional import older

BUILDER_BYTES = 768 << 20
"""Host memory of one TensorRT-RTX builder: 330 to 460 MB measured on full-size blocks, doubled."""

UNIFIED_WORKSPACE_BYTES = 512 << 20
"""Most scratch memory of a layer on boards that share memory with the CPU: without a limit TensorRT
tries kernels that take all there is. Full-size blocks need at most 0.12 GiB
(engines/library/preflight.py).
"""


def this_target(device: DeviceFacts) -> Target:
    """The target this machine's GPU is. Raises EngineError when the table does not say."""
    target = target_of(device)
    if target is None:
        alike = [one.name for one in targets_of(device.compute_capability)]
        capability = "{}.{}".format(*device.compute_capability)
        raise EngineError(
            "this device",
            f"{device.name} has compute capability {capability}, board {device.board or 'unknown'}",
            "one of the targets",
            f"name its module: stc-build BUNDLE --target {' or '.join(alike)}"
            if alike
            else "add a line to engines/library/targets.py, or use --backend onnxruntime",
        )
    return target


def may_be(device: DeviceFacts, target: Target) -> bool:
    """Whether this machine's GPU is `target`, as far as the table can say."""
    known = target_of(device)
    return device.compute_capability == target.compute_capability and known in (target, None)


def choose_flavour(targets: tuple[Target, ...], wanted: Flavour | None) -> TensorRt:
    """The flavour `wanted`, or the first installed one that builds for `targets`.

    Raises EngineError when it is not installed or does not build for them.
    """
    if wanted is not None:
        _refuse_flavour(targets, wanted)
        return load_tensorrt(wanted)
    refusals = []
    for flavour in FLAVOURS:
        try:
            _refuse_flavour(targets, flavour)
            return load_tensorrt(flavour)
        except EngineError as error:
            refusals.append(error)
    # The last flavour's line: where it can build at all, it is the one pip installs whole.
    raise refusals[-1] if all(target.rtx for target in targets) else refusals[0]


def check_precision(bundle: Bundle, targets: tuple[Target, ...]) -> None:
    """Raises EngineError naming the export command when the bundle's precision does not suit."""
    made = bundle.manifest.provenance
    for target in targets:
        if made.precision in target.precisions:
            continue
        raise EngineError(
            bundle.root,
            f"holds {made.precision} graphs",
            f"{' or '.join(target.precisions)} for target {target.name}",
            bundle.export_again(precision=target.precisions[0]),
        )


def check_native(
    tensorrt: TensorRt, targets: tuple[Target, ...], device: DeviceFacts | None, why_not: str
) -> None:
    """Native TensorRT builds only for the GPU it sits on, in the versions that know it.

    `device` None means that no GPU can be used, for the reason `why_not`. Raises EngineError.
    """
    if len(targets) > 1:
        raise EngineError(
            f"--target {joined_name(targets)}",
            "native TensorRT builds for one GPU at a time",
            "",
            "name one target, or use --backend tensorrt-rtx",
        )
    (target,) = targets
    least, below = target.tensorrt
    if older(tensorrt.version, least) or not older(tensorrt.version, below):
        raise EngineError(
            f"target {target.name}",
            f"TensorRT {tensorrt.version} is installed",
            f"{least} or newer, below {below}",
            "use a JetPack or TensorRT in that range"
            + (", or --backend tensorrt-rtx" if target.rtx else ""),
        )
    rtx = "; or use --backend tensorrt-rtx" if target.rtx else ""
    if device is None:
        raise EngineError(
            f"target {target.name}",
            f"no GPU can be used here ({why_not})",
            f"compute capability {target.capability}",
            f"run stc-build on the device{rtx}",
        )
    if not may_be(device, target):
        here = "{}.{}".format(*device.compute_capability)
        raise EngineError(
            f"target {target.name}",
            f"this machine has {device.name}, compute capability {here} {device.board}",
            f"{target.capability} {target.board}",
            f"use --target this-device, or run stc-build on the device{rtx}",
        )


def _refuse_flavour(targets: tuple[Target, ...], flavour: Flavour) -> None:
    for target in targets:
        if flavour == "tensorrt-rtx" and not target.rtx:
            raise EngineError(
                f"target {target.name}",
                f"TensorRT-RTX does not run on compute capability {target.capability}",
                "",
                "use --backend tensorrt, on the device",
            )


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
        stamp = Stamp(
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


def run_build(
    bundle: Bundle,
    plan: BuildPlan,
    flavour: Flavour,
    targets: tuple[Target, ...],
    progress: BuildProgress,
    *,
    workers: int,
    attention: Mapping[str, Attention] | None = None,
) -> BuildFigures:
    """Every missing engine of `plan` is built and in the list, and no dead one is.

    attention: how engines compute it, by the name of their file; what is not named is fused.
    Whatever ends it early, what was finished stays. Raises EngineError with the first failure,
    BundleError when a graph or the bundle is not what it was.
    """
    library, ways = plan.library, attention or {}
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
                attention=ways.get(name, LADDER[0]),
            ),
            library,
        )
        for name, (spec, _) in plan.missing.items()
    )
    size, peak = 0, 0
    with library.locked(), Builders(flavour, min(workers, len(jobs)), progress) as builders:
        known = library.listed()
        entries = {name: one for name, one in known.engines.items() if name not in plan.dead}
        chains = {other: like for other, like in known.chain_cosine.items() if other != flavour}
        unfinished = {*known.unfinished, *plan.dead, *plan.missing}
        library.write(entries, chains, unfinished)
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
                attention=job.recipe.attention,
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
