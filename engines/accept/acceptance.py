"""Engines are accepted, rebuilt with wider attention, or refused: by how they compare.

An engine is compared on the device it will run on; nothing is accepted unseen. A block that
strays is built again with float32 attention, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stc.engines.library.flavour import Flavour
from stc.engines.library.library import Acceptance, Chain, EngineEntry, EngineLibrary
from stc.engines.library.likeness import CHAIN_COSINE, Compared
from stc.engines.library.plan import Buckets
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
class AcceptanceReport:
    """What became of the engines.

    widened: engines rebuilt with float32 attention, with their cosine before and after.
    refused: engines that stray all the same, with their cosine.
    """

    compared: int
    widened: dict[str, tuple[float, float]]
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
    rebuild: Callable[[list[str]], None],
) -> AcceptanceReport:
    """Every engine of `flavour` in the library has its acceptance on GPU `device` in the list.

    `compare` runs them all; `rebuild` builds the engines it is given the names of once more, with
    float32 attention.
    """
    found = compare()
    judged = _judge(library, flavour, device, found)
    strayed = {
        name: entry.acceptance.min_cosine
        for name, entry in judged.items()
        if entry.acceptance is not None and not entry.acceptance.passed
    }
    to_widen = [name for name in strayed if judged[name].can_widen]
    if to_widen:
        rebuild(to_widen)
        found = compare()
        judged = _judge(library, flavour, device, found)
    widened, refused = {}, {}
    for name, entry in judged.items():
        assert entry.acceptance is not None
        cosine = entry.acceptance.min_cosine
        if not entry.acceptance.passed:
            refused[name] = cosine
        elif name in to_widen:
            widened[name] = (strayed[name], cosine)
    return AcceptanceReport(len(judged), widened, refused, found.chain_cosine)


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
    chains = {**library.chains(), flavour: Chain(cosine=found.chain_cosine, device=device)}
    library.write({**entries, **judged}, chains)
    return judged
