"""Engines are compared on keys as large as Qwen2's, which float16 products do not tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.contracts import ATTEND_CONTRACT, HIDDEN_OUT, attend_graph
from stc.engines.accept.comparison import Compared, compare_language
from stc.engines.library.plan import EngineSpec, Sizes
from stc.manifest import FileEntry, GraphEntry, LanguageSpec
from stc.ports import contract_ports, language_sizes
from tests.device_cases import manifest
from tests.oracle.language import Decoder
from tests.test_preflight import QWEN

Array = NDArray[Any]
ATTEND = attend_graph(0)
SIZES: tuple[Sizes, ...] = ({"m": 16, "S": 1024}, {"m": 64, "S": 1024}, {"m": 16, "S": 4096})
QWEN2 = QWEN.model_copy(update={"blocks": 1, "width": 128, "mlp_width": 256})
"""Heads, their width and the rotation are Qwen2-0.5b's."""
DEMO = QWEN2.model_copy(
    update={"query_heads": 4, "head_width": 32, "rotary_base": 1e4, "max_positions": 4096}
)
"""As the demo's: narrow heads, which rotate faster."""


class Rounded(Decoder):
    """Rounds rotated queries and keys, and their products, to a dtype each."""

    def __init__(self, spec: LanguageSpec, operands: type, products: type) -> None:
        random = np.random.default_rng(1)
        prefix, inner = "layers.0.", spec.query_heads * spec.head_width
        shapes = {
            "self_attn.o_proj": (spec.width, inner),
            "mlp.gate_proj": (spec.mlp_width, spec.width),
            "mlp.up_proj": (spec.mlp_width, spec.width),
            "mlp.down_proj": (spec.width, spec.mlp_width),
        }
        tensors: dict[str, Array] = {
            f"{prefix}{name}.weight": (random.standard_normal(shape) / shape[1] ** 0.5).astype("f4")
            for name, shape in shapes.items()
        }
        tensors[f"{prefix}post_attention_layernorm.weight"] = np.ones(spec.width, np.float32)
        super().__init__(spec, tensors)
        self._operands, self._products = operands, products

    def products(self, queries: Array, keys: Array) -> Array:
        narrow = (one.astype(self._operands).astype(np.float32) for one in (queries, keys))
        return super().products(*narrow).astype(self._products).astype(np.float32)

    # What a side of a comparison is.

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert graph == ATTEND
        given = (inputs[port.name] for port in ATTEND_CONTRACT.inputs)
        wide = (one.astype(np.float32) if one.dtype.kind == "f" else one for one in given)
        (hidden,) = self.attend(0, *wide)
        return {HIDDEN_OUT: hidden.astype(np.float16)}

    def end(self, graph: str) -> None: ...


def compared(spec: LanguageSpec, operands: type, products: type) -> list[Compared]:
    """The decoder with such products beside one that rounds nothing, of float16 graphs."""
    ports = contract_ports(ATTEND_CONTRACT, language_sizes(spec), "fp16")
    file = FileEntry(path="graphs/attend_00.onnx", sha256="0" * 64, size_bytes=1)
    graphs = {ATTEND: GraphEntry(file=file, inputs=ports.inputs, outputs=ports.outputs)}
    made = manifest().model_copy(update={"language": spec, "graphs": graphs})
    sides = Rounded(spec, np.float32, np.float32), Rounded(spec, operands, products)
    return compare_language(made, sides, [EngineSpec(ATTEND, SIZES)], lambda _: None)


@pytest.mark.parametrize("spec", [QWEN2, DEMO])
def test_products_in_half_precision_are_refused(spec: LanguageSpec) -> None:
    found = compared(spec, np.float16, np.float16)
    # At each size as before, and on large keys.
    assert [one.passed for one in found] == [True, False] * len(SIZES)


@pytest.mark.parametrize("spec", [QWEN2, DEMO])
def test_operands_in_half_precision_are_not(spec: LanguageSpec) -> None:
    found = compared(spec, np.float16, np.float32)
    assert [one.passed for one in found] == [True] * (2 * len(SIZES))
    assert min(min(one.cosines.values()) for one in found) > 0.9998


def test_keys_are_as_large_as_qwen2s_and_scores_beyond_what_half_precision_tells_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []
    whole = Decoder.products

    def products(decoder: Decoder, queries: Array, keys: Array) -> Array:
        found = whole(decoder, queries, keys)
        seen.append((np.abs(keys).max(), np.median(found) / decoder.spec.head_width**0.5))
        return found

    monkeypatch.setattr(Decoder, "products", products)
    compared(QWEN2, np.float32, np.float32)
    large = [one for one in seen if one[0] > 100]
    assert len(large) == len(seen) / 2
    for largest, score in large:
        assert 190 < largest < 220
        assert 2048 < score < 8192
