"""What the compiler makes of a bundle's graphs at given sizes, for several GPUs.

Graphs of one structure are compiled once: the blocks of a tower differ in their weights alone, and
a list of layers does not depend on those. Compilers work in processes of their own, as those of
stc-build do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stc.bundles.bundle import Bundle
from stc.bundles.contents import TIMINGS
from stc.engines.build.build import (
    UNIFIED_WORKSPACE_BYTES,
    check_native,
    default_workers,
    may_be,
)
from stc.engines.build.builders import Builders, BuildProgress, Job
from stc.engines.build.compile import Recipe
from stc.engines.build.layers import EngineLayers
from stc.engines.gpu.cuda import DeviceFacts
from stc.engines.gpu.device import Say
from stc.engines.library.library import library_of
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import TARGETS, Flavour, Target, TensorRt, load_tensorrt
from stc.errors import EngineError
from stc.onnx_files.onnx_file import structure_digest

EngineCall = tuple[str, tuple[tuple[str, int], ...]]
"""A graph and the sizes of its free axes, sorted: what one run of an engine is of."""
Layers = dict[EngineCall, EngineLayers]


@dataclass(frozen=True)
class Compiler:
    """What lists the layers of `target`'s engines.

    compiled: the target that is compiled for, another where no compiler for `target` is here.
    """

    target: Target
    tensorrt: TensorRt
    compiled: Target

    @property
    def told(self) -> str:
        """For a person: `tensorrt-rtx 1.7.1, sm86 in place of orin-nano`."""
        said = f"{self.tensorrt.flavour} {self.tensorrt.version}"
        if self.compiled is self.target:
            return f"{said}, {self.target.name}"
        return f"{said}, {self.compiled.name} in place of {self.target.name}"


def engine_call(graph: str, sizes: Mapping[str, int]) -> EngineCall:
    """A run of `graph` at `sizes`."""
    return graph, tuple(sorted(sizes.items()))


def find_compiler(
    target: Target,
    wanted: Flavour | None,
    device: DeviceFacts | None,
    why_not: str,
    say: Say,
) -> Compiler:
    """What lists `target`'s layers here: of `wanted`, else native TensorRT where it is installed
    and this machine's GPU is the target, else TensorRT-RTX, which needs no GPU.

    TensorRT-RTX does not know Orin (compute capability 8.7): there its list for the target's
    `stand_in`, the nearest GPU, is read. Why native TensorRT is not taken where it should be is
    told by `say`, or by the error. Raises EngineError when there is no such compiler.
    """
    refused: EngineError | None = None
    here = device is not None and may_be(device, target)
    if wanted == "tensorrt" or (wanted is None and here):
        try:
            native = load_tensorrt("tensorrt")
            check_native(native, (target,), device, why_not)
        except EngineError as error:
            if wanted is not None:
                raise
            refused = error
        else:
            return Compiler(target, native, target)
    try:
        rtx = load_tensorrt("tensorrt-rtx")
    except EngineError as error:
        if refused is None:
            raise
        got = f"no compiler lists its layers ({refused}; {error})"
        raise EngineError(f"target {target.name}", got, "", "mend one of both") from error
    if refused is not None:
        say(f"{target.name}: native TensorRT is not asked, TensorRT-RTX is ({refused})")
    return Compiler(target, rtx, target if target.rtx else TARGETS[target.stand_in])


def spec_of(call: EngineCall, specs: Iterable[EngineSpec]) -> EngineSpec:
    """The engine of `specs` that runs `call`, at its sizes alone. Raises EngineError."""
    graph, sizes = call
    for spec in specs:
        if spec.graph == graph and dict(sizes) in spec.profiles:
            return EngineSpec(graph, (dict(sizes),), spec.baked)
    raise EngineError(graph, f"no engine is planned for {dict(sizes)}")


def list_engines(
    bundle: Bundle,
    calls: Iterable[EngineCall],
    specs: Sequence[EngineSpec],
    compilers: Sequence[Compiler],
    progress: BuildProgress,
) -> dict[str, Layers]:
    """The layers of every engine that `calls` run, by the name of the target.

    Raises EngineError with the first graph that cannot be compiled or whose list cannot be read,
    BundleError when a graph is not what it was.
    """
    alike = _alike(bundle, calls, specs)
    listed: dict[tuple[Flavour, str], Layers] = {}
    for flavour in dict.fromkeys(one.tensorrt.flavour for one in compilers):
        fitting = (one for one in compilers if one.tensorrt.flavour == flavour)
        targets = dict.fromkeys(one.compiled for one in fitting)
        found = _listed(bundle, alike, flavour, targets, progress)
        listed |= {(flavour, name): layers for name, layers in found.items()}
    return {one.target.name: listed[one.tensorrt.flavour, one.compiled.name] for one in compilers}


def engines_to_list(
    bundle: Bundle,
    calls: Iterable[EngineCall],
    specs: Sequence[EngineSpec],
    compilers: Sequence[Compiler],
) -> int:
    """How many engines `list_engines` compiles."""
    lists = {(one.tensorrt.flavour, one.compiled.name) for one in compilers}
    return len(lists) * len(_alike(bundle, calls, specs))


def _alike(
    bundle: Bundle, calls: Iterable[EngineCall], specs: Sequence[EngineSpec]
) -> list[tuple[EngineSpec, list[EngineCall]]]:
    """One engine of each structure and size, with the calls of all that are like it."""
    groups: dict[tuple[object, ...], tuple[EngineSpec, list[EngineCall]]] = {}
    for call in dict.fromkeys(calls):
        spec = spec_of(call, specs)
        content = bundle.read(bundle.manifest.graphs[spec.graph].file.path)
        key = (structure_digest(content), call[1], spec.baked)
        groups.setdefault(key, (spec, []))[1].append(call)
    return list(groups.values())


def _listed(
    bundle: Bundle,
    alike: list[tuple[EngineSpec, list[EngineCall]]],
    flavour: Flavour,
    targets: Iterable[Target],
    progress: BuildProgress,
) -> dict[str, Layers]:
    """By the target that was compiled for."""
    graphs = {spec.graph: bundle.graph(spec.graph) for spec, _ in alike}
    jobs: deque[Job] = deque()
    found: dict[str, Layers] = {}
    calls: dict[str, list[EngineCall]] = {}
    for target in targets:
        library = library_of(bundle, target.name)
        for spec, group in alike:
            name = f"{spec.stem}, {target.name}"
            recipe = Recipe(
                spec=spec,
                path=graphs[spec.graph].path,
                graph=bundle.manifest.graphs[spec.graph],
                targets=(target,),
                workspace_bytes=UNIFIED_WORKSPACE_BYTES if target.unified else None,
                timing_cache=library.file(TIMINGS) if flavour == "tensorrt" else None,
                detailed=True,
            )
            jobs.append(Job(name, recipe, library))
            calls[name] = group
    with Builders(flavour, min(default_workers(flavour), len(jobs)), progress) as builders:
        for job, outcome in builders.outcomes(jobs):
            if outcome.layers is None:
                raise EngineError(job.name, bundle.files.named(outcome.failure))
            graphs[job.recipe.spec.graph].check_unchanged()
            (target,) = job.recipe.targets
            layers = dict.fromkeys(calls[job.name], outcome.layers)
            found[target.name] = found.get(target.name, {}) | layers
            progress.built(job.recipe.spec.stem)
    return found
