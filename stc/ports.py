"""The ports of a contract with one model's sizes, as a manifest lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stc import contracts
from stc.contracts import Contract, Port
from stc.manifest import LanguageSpec, PortEntry, Precision, VisionSpec
from stc.settings import SCORINGS


class GraphPorts(NamedTuple):
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[PortEntry, ...]
    outputs: tuple[PortEntry, ...]


def vision_ports(spec: VisionSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of every vision graph of a model, by name, in running order."""
    memories = {
        contracts.prune_graph(scoring): contracts.memory_width(scoring, spec.language_width)
        for scoring in SCORINGS
    }
    return {
        name: _ports(contract, vision_sizes(spec, memories.get(name, 0)), precision)
        for name, contract in contracts.vision_graphs(spec.blocks).items()
    }


def language_ports(spec: LanguageSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of every language graph of a model, by name, in running order."""
    return {
        name: _ports(contract, language_sizes(spec), precision)
        for name, contract in contracts.language_graphs(spec.blocks).items()
    }


def fused_ports(spec: LanguageSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of the language graphs that stand in a bundle for ONNX Runtime alone, too."""
    attends = {contracts.attend_graph(block) for block in range(spec.blocks)}
    ports = language_ports(spec, precision)
    return {name: found for name, found in ports.items() if name in attends}


def int4_ports(spec: LanguageSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of the language graphs that stand in a bundle with four-bit matrices, too."""
    ports = language_ports(spec, precision)
    # The embedding is looked up, not multiplied with.
    del ports[contracts.TEXT_EMBED]
    return ports


def _ports(contract: Contract, sizes: Mapping[str, int], precision: Precision) -> GraphPorts:
    return GraphPorts(
        port_entries(contract.inputs, sizes, precision),
        port_entries(contract.outputs, sizes, precision),
    )


def port_entries(
    ports: tuple[Port, ...], sizes: Mapping[str, int], precision: Precision
) -> tuple[PortEntry, ...]:
    """`ports` with the axes that `sizes` names by symbol; the others stay free."""
    network = {"fp32": "float32", "fp16": "float16"}[precision]
    return tuple(
        PortEntry.model_validate(
            {
                "name": port.name,
                "shape": tuple(sizes.get(symbol, symbol) for symbol in port.shape),
                "dtype": network if port.dtype == "network" else port.dtype,
            }
        )
        for port in ports
    )


def vision_sizes(spec: VisionSpec, memory: int) -> dict[str, int]:
    """Sizes of a tower's axes; M and k stay free. `memory` is P."""
    return {
        "1": 1,
        "3": 3,
        "Hpx": spec.image_size,
        "Wpx": spec.image_size,
        "T": spec.tokens,
        "C": spec.width,
        "H": spec.heads,
        "d": spec.head_width,
        "n": spec.pooled,
        "D": spec.language_width,
        "P": memory,
    }


def language_sizes(spec: LanguageSpec) -> dict[str, int]:
    """Sizes of a decoder's axes; m and S stay free."""
    return {
        "1": 1,
        "D": spec.width,
        "Q": spec.query_heads,
        "G": spec.key_heads,
        "e": spec.head_width,
        "V": spec.vocabulary,
    }
