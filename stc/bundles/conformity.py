"""Conformity: a manifest lists the graphs, ports and weights that its own spec asks for.

A manifest whose parts disagree would run with wrong results, or fail inside a runtime that cannot
say why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stc.errors import BundleError
from stc.manifest import LANGUAGE_WEIGHTS, WEIGHTS, GraphChoice, Manifest, PortEntry
from stc.method.graphs import vision_ports
from stc.ports import GraphPorts, language_ports


def check_conformity(manifest: Manifest, subject: object, fix: str) -> None:
    """Every graph of the contracts is there with its ports, no other is, and weights are listed.

    Raises BundleError about `subject`, with `fix`, for the first disagreement.
    """
    for got, expected in _disagreements(manifest):
        raise BundleError(subject, got, expected, fix)


def _disagreements(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What the manifest says, and what its spec asks for."""
    precision = manifest.provenance.precision
    vision, language = manifest.vision, manifest.language
    graphs = vision_ports(vision, precision)
    weights = [WEIGHTS, *(one.weights for one in manifest.variants.values() if one.weights)]
    if language is not None:
        if language.width != vision.language_width:
            yield f"language.width is {language.width}", f"vision's {vision.language_width}"
        graphs |= language_ports(language, precision)
        weights.append(LANGUAGE_WEIGHTS)
    yield from _of_graphs("graphs", manifest.table(None), graphs)
    for name in manifest.variants:
        yield from _of_graphs(f"variants.{name}", manifest.table(name), graphs)
    listed = {file.path for file in manifest.files}
    for path in weights:
        if path not in listed:
            yield "files leave weights out", path


def _of_graphs(
    field: str, found: Mapping[str, GraphChoice], asked: Mapping[str, GraphPorts]
) -> Iterator[tuple[str, str]]:
    for name in sorted(found.keys() ^ asked.keys()):
        if name in asked:
            yield f"{field} has no {name}", f"the {len(asked)} graphs of its spec"
        else:
            yield f"{field} has {name}", f"only the {len(asked)} graphs of its spec"
    for name, ports in asked.items():
        for kind, here, there in (
            ("inputs", found[name].entry.inputs, ports.inputs),
            ("outputs", found[name].entry.outputs, ports.outputs),
        ):
            if here != there:
                yield f"{name} has {kind} {_listed(here)}", f"{_listed(there)} by its spec"


def _listed(ports: tuple[PortEntry, ...]) -> str:
    return ", ".join(f"{port.name} {list(port.shape)} {port.dtype}" for port in ports).replace(
        "'", ""
    )
