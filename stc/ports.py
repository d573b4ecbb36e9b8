"""The ports of a contract with one model's sizes, as a manifest lists them.

Those of the vision graphs are `stc.method.graphs.vision_ports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stc import contracts
from stc.contracts import Contract, Port
from stc.manifest import LanguageSpec, PortEntry, Precision

NETWORK_DTYPES: dict[Precision, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
}
"""The numpy type that `network` means in a contract, by the precision of the bundle."""


class GraphPorts(NamedTuple):
    """The inputs and outputs of one graph, in order."""

    inputs: tuple[PortEntry, ...]
    outputs: tuple[PortEntry, ...]


def language_ports(spec: LanguageSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of every language graph of a model, by name, in running order."""
    return {
        name: contract_ports(contract, language_sizes(spec), precision)
        for name, contract in contracts.language_graphs(spec.blocks).items()
    }


def contract_ports(
    contract: Contract, sizes: Mapping[str, int], precision: Precision
) -> GraphPorts:
    """The ports of one graph with the axes that `sizes` names by symbol; the others stay free."""
    return GraphPorts(
        port_entries(contract.inputs, sizes, precision),
        port_entries(contract.outputs, sizes, precision),
    )


def port_entries(
    ports: tuple[Port, ...], sizes: Mapping[str, int], precision: Precision
) -> tuple[PortEntry, ...]:
    """`ports` with the axes that `sizes` names by symbol; the others stay free."""
    network = NETWORK_DTYPES[precision].name
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
