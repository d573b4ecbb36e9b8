"""A bundle's engines for the GPU of this machine: found, checked against their stamps, opened."""

from __future__ import annotations

from collections.abc import Callable

from stc.bundles.bundle import Bundle
from stc.engines.build.target import known_target, this_target
from stc.engines.gpu.cuda import DeviceFacts, device_facts, load_cuda
from stc.engines.gpu.device import Device
from stc.engines.gpu.recording import Say
from stc.engines.library.flavour import Flavour, load_tensorrt
from stc.engines.library.library import (
    EngineEntry,
    EngineLibrary,
    build_again,
    libraries_of,
)
from stc.engines.library.plan import Sizes
from stc.engines.library.preflight import Demand, check_fits
from stc.engines.library.targets import Target, targets_of
from stc.engines.library.usable_engines import Entries, built_for, find_engines, refusal, uncompared
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import EngineError


class AcceptedLibrary(EngineLibrary):
    """A library that hands out no engine of which `refusal` knows a reason not to."""

    def __init__(
        self, library: EngineLibrary, refusal: Callable[[EngineEntry], EngineError | None]
    ) -> None:
        super().__init__(library.folder, library.place, library.pinned)
        self._refusal = refusal

    def read(self, entry: EngineEntry) -> bytes:
        """As EngineLibrary; raises the refusal too."""
        if (refusal := self._refusal(entry)) is not None:
            raise refusal
        return super().read(entry)


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
    if count := uncompared(entries, device):
        say(
            f"{count} engines were never compared with ONNX Runtime on this device; "
            f"compare them with: {build_again(bundle, flavour, built_for(entries))}"
        )
    accepted = AcceptedLibrary(library, lambda entry: refusal(bundle, entry, device))
    return TensorRtBackend(bundle, accepted, entries, tensorrt, Device(cuda), say)


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
        weights_bytes=sum(
            _loaded_bytes(graph, some, bundle.manifest.vision.tokens)
            for graph, some in entries.items()
        ),
        workspace_bytes=max(scratch) if len(scratch) == len(engines) else None,
    )
    return check_fits(demand, facts.name, facts.free_bytes)


def _loaded_bytes(graph: str, engines: list[EngineEntry], tokens: int) -> int:
    """Size of those of a graph's `engines` that a stream has loaded at once, at most.

    A stream has one ratio and one budget, and a language model every size there is; see `prepare`
    of TensorRtEngine.
    """
    sizes = [profile for entry in engines for profile in entry.stamp.profiles]
    streams = [sizes]
    if any({"M", "k"} & set(profile) for profile in sizes):
        # A reference frame computes all tokens.
        streams = [[profile, {"M": tokens}] for profile in sizes]
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
