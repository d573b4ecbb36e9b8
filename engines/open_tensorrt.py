"""A bundle's engines for the GPU of this machine: found, checked against their stamps, opened."""

from __future__ import annotations

from stc.bundle import Bundle
from stc.contracts import language_graphs
from stc.engines.acceptance import can_widen
from stc.engines.build_target import known_target, this_target
from stc.engines.cuda import DeviceFacts, device_facts, load_cuda
from stc.engines.device import Device
from stc.engines.flavour import Flavour, TensorRt, load_tensorrt
from stc.engines.library import (
    EngineEntry,
    EngineLibrary,
    build_again,
    libraries_of,
    of_bundle,
    weights_sha256,
)
from stc.engines.likeness import CHAIN_COSINE
from stc.engines.preflight import Demand, check_fits
from stc.engines.recording import Say
from stc.engines.targets import JOINED, Target, targets_of
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.errors import EngineError

Entries = dict[str, list[EngineEntry]]
"""Usable engines by graph."""


def open_tensorrt(
    bundle: Bundle, flavour: Flavour, say: Say, *, context: int, streams: int = 1
) -> TensorRtBackend:
    """The backend of the bundle's engines on this machine's GPU.

    `context` and `streams` are what will be run (see Demand), for the check that it fits; with a
    context of 0 the language model's engines are left alone. Raises EngineError, one line with the
    command that mends it.
    """
    tensorrt = load_tensorrt(flavour)
    cuda = load_cuda()
    facts = device_facts(cuda)
    target = built_target(bundle, facts)
    library, entries = find_engines(bundle, tensorrt, target, language=context > 0)
    check_memory(bundle, entries, facts, context=context, streams=streams)
    if count := _uncompared(entries):
        say(
            f"{count} engines were never compared with ONNX Runtime on this device; "
            f"compare them with: {build_again(bundle, flavour)}"
        )
    return TensorRtBackend(bundle, library, entries, tensorrt, Device(cuda), say)


def built_target(bundle: Bundle, device: DeviceFacts) -> Target:
    """The target this GPU is; on a board the table does not know, the only one built for its kind.

    Raises EngineError when that does not say either.
    """
    known = known_target(device)
    if known is None:
        alike = {target.name: target for target in targets_of(device.compute_capability)}
        libraries = libraries_of(bundle)
        built = {name for one in libraries for names in one.targets() for name in names}
        if len(built & alike.keys()) == 1:
            return alike[(built & alike.keys()).pop()]
    return this_target(device)


def find_engines(
    bundle: Bundle, tensorrt: TensorRt, target: Target, *, language: bool
) -> tuple[EngineLibrary, Entries]:
    """The library whose engines this machine, a `target`, can run now, and those engines.

    Those of the language model count only with `language`. Raises EngineError when there is none:
    never built, for another GPU, by another version, of other graphs, or refused by the comparison
    with ONNX Runtime.
    """
    mend = f"build with: {build_again(bundle, tensorrt.flavour)}"
    libraries = libraries_of(bundle)
    if not libraries:
        raise EngineError(bundle.root, "has no engines", f"engines for {target.name}", mend)
    usable: list[tuple[EngineLibrary, Entries]] = []
    refusals: list[EngineError] = []
    others: list[str] = []
    for library in libraries:
        try:
            built = library.targets()
            if not any(target.name in targets for targets in built):
                others += map(JOINED.join, sorted(built))
                continue
            usable.append((library, _usable(bundle, library, tensorrt, target, language=language)))
        except EngineError as error:
            refusals.append(error)
    if usable:
        # Engines that were compared on this device are better than any that were not.
        return min(usable, key=lambda found: bool(_uncompared(found[1])))
    if refusals:
        raise refusals[-1]
    got = f"has engines for {', '.join(others)}"
    raise EngineError(bundle.root, got, f"{target.name}, this GPU", mend)


def check_memory(
    bundle: Bundle, entries: Entries, facts: DeviceFacts, *, context: int, streams: int
) -> str:
    """One line about the memory the engines will take. Raises EngineError when it is too much."""
    engines = [entry for graph in entries.values() for entry in graph]
    scratch = [entry.workspace_bytes for entry in engines if entry.workspace_bytes is not None]
    demand = Demand(
        manifest=bundle.manifest,
        context=context,
        streams=streams,
        weights_bytes=sum(entry.file.size_bytes for entry in engines),
        workspace_bytes=max(scratch) if len(scratch) == len(engines) else None,
    )
    return check_fits(demand, facts.name, facts.free_bytes)


def _uncompared(entries: Entries) -> int:
    """How many engines were never compared with ONNX Runtime."""
    return sum(entry.acceptance is None for graph in entries.values() for entry in graph)


def _usable(
    bundle: Bundle, library: EngineLibrary, tensorrt: TensorRt, target: Target, *, language: bool
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
    mend = f"build with: {build_again(bundle, tensorrt.flavour, joined)}"
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
            stale[stamp.graph] = EngineError(name, got, expected, mend)
            continue
        if entry.acceptance is not None and not entry.acceptance.passed:
            cosine = entry.acceptance.min_cosine
            got = f"strays from ONNX Runtime on this device, cosine {cosine:.4f}"
            no_mend = "no build mends it: use --backend onnxruntime, or another version of TensorRT"
            raise EngineError(name, got, "", mend if can_widen(entry) else no_mend)
        usable.setdefault(stamp.graph, []).append(entry)
    for graph, error in stale.items():
        if graph not in usable:
            raise error
    if not usable:
        raise EngineError(library.folder, f"has no engines of {tensorrt.flavour}", "", mend)
    chain = library.chain_cosines().get(tensorrt.flavour)
    if chain is not None and chain < CHAIN_COSINE:
        got = f"the whole tower strays from ONNX Runtime on this device, cosine {chain:.4f}"
        raise EngineError(library.folder, got, f"{CHAIN_COSINE}", mend)
    return usable
