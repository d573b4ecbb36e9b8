"""Engines of the language side are compared with ONNX Runtime at every size they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.engines.accept.comparison import compare_language
from stc.engines.eager import EngineSide
from stc.engines.engine import Engine, Tensor
from stc.engines.library.plan import EngineSpec
from stc.manifest import FileEntry, GraphEntry, LanguageSpec
from stc.ports import language_sizes, port_entries
from tests.device_cases import manifest

Outputs = dict[str, Tensor]


def test_language_graphs_are_compared_at_every_size_they_are_built_for() -> None:
    spec = LanguageSpec(
        width=4,
        blocks=1,
        query_heads=2,
        key_heads=1,
        head_width=2,
        mlp_width=4,
        vocabulary=9,
        max_positions=64,
        rotary_base=1e4,
        rms_norm_eps=1e-6,
        activation="silu",
        tied_head=True,
        video_token_id=8,
        stop_token_ids=(7,),
    )
    graphs = {
        name: GraphEntry(
            file=FileEntry(path=f"graphs/{name}.onnx", sha256="0" * 64, size_bytes=1),
            inputs=port_entries(contract.inputs, language_sizes(spec), "fp32"),
            outputs=port_entries(contract.outputs, language_sizes(spec), "fp32"),
        )
        for name, contract in contracts.language_graphs(1).items()
    }
    whole = manifest().model_copy(update={"language": spec, "graphs": graphs})
    seen: list[dict[str, tuple[int, ...]]] = []

    class Sums:
        """Every output is the sum of the inputs, so that equal inputs give equal outputs."""

        name = "sums"
        to_device = to_host = staticmethod(np.array)

        def load(self, graph: str) -> Engine:
            def run(inputs: Mapping[str, NDArray[Any]], outputs: Any = None) -> Outputs:
                seen.append({name: array.shape for name, array in inputs.items()})
                total = sum(float(array.sum()) for array in inputs.values())
                return {port.name: np.full(3, total) for port in graphs[graph].outputs}

            return run  # type: ignore[return-value]

    specs = [
        EngineSpec("qkv_00", ({"m": 1}, {"m": 5})),
        EngineSpec("attend_00", ({"m": 5, "S": 8},)),
        EngineSpec("head", ({},)),
    ]
    sums: Any = Sums()
    both = EngineSide(sums, graphs), EngineSide(sums, graphs)
    found = compare_language(whole, both, specs, lambda _: None)
    assert [(one.graph, one.sizes, one.passed) for one in found] == [
        ("qkv_00", {"m": 1}, True),
        ("qkv_00", {"m": 5}, True),
        ("attend_00", {"m": 5, "S": 8}, True),
        ("attend_00", {"m": 5, "S": 8}, True),
        ("head", {}, True),
    ]
    assert seen[4]["keys"] == (1, 8, 2)
