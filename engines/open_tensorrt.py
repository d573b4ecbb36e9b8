"""A bundle's engines for the GPU of this machine: found, checked against their stamps, opened."""

from __future__ import annotations

from stc.bundles.bundle import Bundle
from stc.contracts import language_graphs
from stc.engines.build.build import this_target
from stc.engines.gpu.cuda import DeviceFacts, device_facts, load_cuda
from stc.engines.gpu.device import Device, Say
from stc.engines.library.library import (
    CHAIN_COSINE,
    EngineEntry,
    EngineLibrary,
    build_again,
    libraries_of,
    of_bundle,
    weights_sha256,
)
from stc.engines.library.plan import Sizes
from stc.engines.library.preflight import Demand, check_fits
from stc.engines.library.targets import (
    JOINED,
    Flavour,
    Target,
    TensorRt,
    load_tensorrt,
    target_of,
    targets_of,
)
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import EngineError
from stc.method.graphs import PRUNERS

Entries = dict[str, list[EngineEntry]]
"""Usable engines by graph."""


def find_engines(
    bundle: Bundle,
    tensorrt: TensorRt,
    target: Target,
    *,
    language: bool,
    device: str | None = None,
) -> tuple[EngineLibrary, Entries]:
    """The library whose engines this machine, a `target`, can run now, and those engines.

    Those of the language model count only with `language`. `device` is the GPU's name: what was
    compared with ONNX Runtime on another was not compared here; None takes a comparison on any.
    Raises EngineError when there is none: never built, for another GPU, by another version, of
    other graphs, or refused by that comparison. Pruners that were refused are among the engines: a
    stream runs one of them at most.
    """
    fix = f"build with: {build_again(bundle, tensorrt.flavour)}"
    libraries = libraries_of(bundle)
    if not libraries:
        raise EngineError(bundle.root, "has no engines", f"engines for {target.name}", fix)
    usable: list[tuple[EngineLibrary, Entries]] = []
    refusals: list[EngineError] = []
    others: list[str] = []
    for library in libraries:
        try:
            built = library.targets()
            if not any(target.name in targets for targets in built):
                others += map(JOINED.join, sorted(built))
                continue
            found = _usable(bundle, library, tensorrt, target, language=language, device=device)
            usable.append((library, found))
        except EngineError as error:
            refusals.append(error)
    if usable:
        # Engines that were accepted on this device are better than any that were not.
        return min(usable, key=lambda found: not _accepted(found[1], device))
    if refusals:
        raise refusals[-1]
    got = f"has engines for {', '.join(others)}"
    raise EngineError(bundle.root, got, f"{target.name}, this GPU", fix)


def _accepted(entries: Entries, device: str | None) -> bool:
    """Whether every engine was compared on `device` and none strayed."""
    judged = [entry.accepted_on(device) for graph in entries.values() for entry in graph]
    return all(one is not None and one.passed for one in judged)


def refusal(bundle: Bundle, entry: EngineEntry, device: str | None) -> EngineError | None:
    """Why the engine must not run on `device`, if the comparison with ONNX Runtime says so."""
    judged, stamp = entry.accepted_on(device), entry.stamp
    if judged is None or judged.passed:
        return None
    got = f"deviates from ONNX Runtime on this device, cosine {judged.min_cosine:.4f}"
    fix = f"build with: {build_again(bundle, stamp.flavour, JOINED.join(stamp.targets))}"
    if entry.next_attention is None:
        pruner = "another --pruner, " if stamp.graph in PRUNERS else ""
        fix = (
            f"no build fixes it: use {pruner}--backend onnxruntime, or another version of TensorRT"
        )
    return EngineError(entry.file.path, got, "", fix)


def _usable(
    bundle: Bundle,
    library: EngineLibrary,
    tensorrt: TensorRt,
    target: Target,
    *,
    language: bool,
    device: str | None,
) -> Entries:
    """The library's engines of the flavour by graph, each checked against its stamp.

    What is stale is passed over where the graph has another engine: one for other sizes, perhaps.
    """
    usable: Entries = {}
    stale: dict[str, EngineError] = {}
    decoder = bundle.manifest.language
    ignored = language_graphs(decoder.blocks) if decoder is not None and not language else {}
    weights = weights_sha256(bundle)
    (joined, *_) = (JOINED.join(built) for built in library.targets() if target.name in built)
    fix = f"build with: {build_again(bundle, tensorrt.flavour, joined)}"
    for name, entry in library.entries().items():
        stamp = entry.stamp
        if stamp.flavour != tensorrt.flavour or stamp.graph in ignored:
            continue
        got, expected = "", ""
        if target.name not in stamp.targets:
            got, expected = f"built for {JOINED.join(stamp.targets)}", f"{target.name}, this GPU"
        elif stamp.version != tensorrt.version:
            got = f"built by {stamp.flavour} {stamp.version}"
            expected = f"{tensorrt.version}, which is installed"
        elif not of_bundle(stamp, bundle, weights):
            got = "built from other graphs or weights than these"
        elif not library.whole(entry):
            got = "is missing or cut short"
        if got:
            stale[stamp.graph] = EngineError(name, got, expected, fix)
            continue
        strays = refusal(bundle, entry, device)
        if strays is not None and stamp.graph not in PRUNERS:
            raise strays
        usable.setdefault(stamp.graph, []).append(entry)
    for graph, error in stale.items():
        if graph not in usable:
            raise error
    if not usable:
        raise EngineError(library.folder, f"has no engines of {tensorrt.flavour}", "", fix)
    chain = library.listed().chain_on(tensorrt.flavour, device)
    if chain is not None and not chain.passed:
        got = f"the tower deviates from ONNX Runtime on this device, cosine {chain.cosine:.4f}"
        raise EngineError(library.folder, got, f"{CHAIN_COSINE}", fix)
    return usable


def open_tensorrt(
    bundle: Bundle, flavour: Flavour, say: Say, *, context: int, streams: int = 1
) -> TensorRtBackend:
    """The backend of the bundle's engines on this machine's GPU.

    `context` and `streams` are what will be run (see Demand), for the check that it fits; with a
    context of 0 the language model's engines are left alone. Raises EngineError, one line with the
    command that fixes it.
    """
    tensorrt = load_tensorrt(flavour)
    cuda = load_cuda()
    facts = device_facts(cuda)
    target = built_target(bundle, facts)
    device = facts.name
    library, entries = find_engines(bundle, tensorrt, target, language=context > 0, device=device)
    check_memory(bundle, entries, facts, context=context, streams=streams)
    engines = [entry for graph in entries.values() for entry in graph]
    if count := sum(entry.accepted_on(device) is None for entry in engines):
        built_for = JOINED.join(engines[0].stamp.targets)
        say(
            f"{count} engines were never compared with ONNX Runtime on this device; "
            f"compare them with: {build_again(bundle, flavour, built_for)}"
        )
    return TensorRtBackend(
        bundle,
        library,
        entries,
        tensorrt,
        Device(cuda),
        say,
        refusal=lambda entry: refusal(bundle, entry, device),
    )


def built_target(bundle: Bundle, device: DeviceFacts) -> Target:
    """The target this GPU is; on a board the table does not know, the only one built for its kind.

    Raises EngineError when that does not say either.
    """
    known = target_of(device)
    if known is None:
        alike = {target.name: target for target in targets_of(device.compute_capability)}
        libraries = libraries_of(bundle)
        built = {name for one in libraries for names in one.targets() for name in names}
        if len(built & alike.keys()) == 1:
            return alike[(built & alike.keys()).pop()]
    return this_target(device)


def check_memory(
    bundle: Bundle, entries: Entries, facts: DeviceFacts, *, context: int, streams: int
) -> str:
    """One line about the memory the engines will take. Raises EngineError when it is too much.

    Of a graph's engines those count that a stream has loaded at once, at most.
    """
    engines = [entry for graph in entries.values() for entry in graph]
    scratch = [entry.workspace_bytes for entry in engines if entry.workspace_bytes is not None]
    demand = Demand(
        manifest=bundle.manifest,
        context=context,
        streams=streams,
        weights_bytes=sum(map(_loaded_bytes, entries.values())),
        workspace_bytes=max(scratch) if len(scratch) == len(engines) else None,
    )
    return check_fits(demand, facts.name, facts.free_bytes)


def _loaded_bytes(engines: list[EngineEntry]) -> int:
    """Size of those of one graph's `engines` that a stream has loaded at once, at most.

    A stream has one ratio and one budget, and a language model every size there is; see `prepare`
    of TensorRtEngine.
    """
    sizes = [profile for entry in engines for profile in entry.stamp.profiles]
    streams = [sizes]
    if any({"M", "k"} & set(profile) for profile in sizes):
        streams = [[profile] for profile in sizes]
    return max(_prepared_bytes(engines, wanted) for wanted in streams)


def _prepared_bytes(engines: list[EngineEntry], wanted: list[Sizes]) -> int:
    """Size of the `engines` that are loaded for the sizes `wanted`, where there are such."""
    loaded: list[EngineEntry] = []
    for sizes in wanted:
        if any(sizes in entry.stamp.profiles for entry in loaded):
            continue
        holding = [entry for entry in engines if sizes in entry.stamp.profiles]
        loaded += sorted(holding, key=lambda entry: _worth(entry, wanted))[-1:]
    return sum(entry.file.size_bytes for entry in loaded)


def _worth(entry: EngineEntry, wanted: list[Sizes]) -> tuple[int, int]:
    """Of how many of the sizes `wanted` it is; of equals the larger counts."""
    return sum(sizes in entry.stamp.profiles for sizes in wanted), entry.file.size_bytes
