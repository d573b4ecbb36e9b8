"""The ports of a contract with one model's sizes, as a manifest lists them."""

from __future__ import annotations

from collections.abc import Mapping

from stc.contracts import Port
from stc.manifest import LanguageSpec, PortEntry, Precision, VisionSpec


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
