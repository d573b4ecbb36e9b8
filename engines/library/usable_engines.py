"""Which engines of a bundle this machine can run: built for it, whole, and not known to stray."""

from __future__ import annotations

from stc.bundles.bundle import Bundle
from stc.contracts import language_graphs
from stc.engines.library.flavour import TensorRt
from stc.engines.library.library import (
    CHAIN_COSINE,
    EngineEntry,
    EngineLibrary,
    build_again,
    libraries_of,
    of_bundle,
    weights_sha256,
)
from stc.engines.library.targets import JOINED, Target
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


def uncompared(entries: Entries, device: str | None) -> int:
    """How many engines were never compared with ONNX Runtime on `device`."""
    engines = (entry for graph in entries.values() for entry in graph)
    return sum(entry.accepted_on(device) is None for entry in engines)


def _accepted(entries: Entries, device: str | None) -> bool:
    """Whether every engine was compared on `device` and none strayed."""
    judged = [entry.accepted_on(device) for graph in entries.values() for entry in graph]
    return all(one is not None and one.passed for one in judged)


def built_for(entries: Entries) -> str:
    """The targets that the engines were built for together, as stc-build takes them."""
    stamps = (entry.stamp for graph in entries.values() for entry in graph)
    return JOINED.join(next(stamps).targets)


def refusal(bundle: Bundle, entry: EngineEntry, device: str | None) -> EngineError | None:
    """Why the engine must not run on `device`, if the comparison with ONNX Runtime says so."""
    judged, stamp = entry.accepted_on(device), entry.stamp
    if judged is None or judged.passed:
        return None
    got = f"deviates from ONNX Runtime on this device, cosine {judged.min_cosine:.4f}"
    fix = f"build with: {build_again(bundle, stamp.flavour, JOINED.join(stamp.targets))}"
    if not entry.can_widen:
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
    chain = library.chain_on(tensorrt.flavour, device)
    if chain is not None and not chain.passed:
        got = f"the tower deviates from ONNX Runtime on this device, cosine {chain.cosine:.4f}"
        raise EngineError(library.folder, got, f"{CHAIN_COSINE}", fix)
    return usable
