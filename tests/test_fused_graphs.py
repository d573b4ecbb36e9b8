"""Graphs for ONNX Runtime alone: cached keys rotated in one operator, as the portable ones do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stc import contracts
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeEngine
from stc.export.decoders.qwen2.key_rotation import COSINES, SINES
from stc.manifest import LANGUAGE_WEIGHTS, Group, Precision
from stc.method.difference import difference
from tests.graph_files import graph_file
from tests.kept_tokens import MAX_POSITIONS
from tests.language_cases import LanguageCase, language_case

NAME = contracts.attend_graph(1)


def graph_of(case: LanguageCase, path: str) -> onnx.GraphProto:
    return onnx.load(case.bundle.root / path, load_external_data=False).graph


@pytest.mark.parametrize(("precision", "group"), [("fp32", 32), ("fp16", 128)])
@pytest.mark.parametrize("int4", [False, True])
def test_cached_keys_are_rotated_in_one_operator_alike(
    precision: Precision, group: Group, int4: bool
) -> None:
    """Also in a context of more rows than the model has positions."""
    case = language_case(precision=precision, int4=group)
    backend = OnnxRuntimeBackend(case.bundle, weights="int4" if int4 else None)
    manifest, random, rows = case.bundle.manifest, np.random.default_rng(0), MAX_POSITIONS + 90
    spec = manifest.language
    assert spec is not None
    own = manifest.variants["int4" if int4 else "fused"].graphs
    operators = [node.op_type for node in graph_of(case, own[NAME].file.path).node]
    assert operators.count("RotaryEmbedding") == 1
    assert operators.count("Cos") == 1  # of the query's positions
    positions = random.permutation(rows).astype(np.int64)
    positions[positions >= spec.max_positions] = -1
    shape = (spec.key_heads, rows, spec.head_width)
    dtype = np.float16 if precision == "fp16" else np.float32
    inputs = {
        contracts.HIDDEN: random.standard_normal((3, spec.width)).astype(dtype),
        contracts.QUERY: random.standard_normal((spec.query_heads, 3, spec.head_width)).astype(
            dtype
        ),
        contracts.KEYS: random.standard_normal(shape).astype(dtype),
        contracts.VALUES: random.standard_normal(shape).astype(dtype),
        contracts.QUERY_POSITIONS: np.array([0, 100, spec.max_positions - 1]),
        contracts.KEY_POSITIONS: positions,
    }
    tensors = {name: backend.to_device(array) for name, array in inputs.items()}
    portable = OnnxRuntimeEngine(NAME, graph_file(case.bundle, NAME), "cpu")
    expected, got = (
        backend.to_host(engine(tensors)[contracts.HIDDEN_OUT]).astype(np.float32)
        for engine in (portable, backend.load(NAME))
    )
    if int4:
        # What four bits change in the matrices, and no more: wrong angles are far from it.
        assert np.corrcoef(got.ravel(), expected.ravel())[0, 1] > 0.98
    else:
        most = 2e-3 if precision == "fp16" else 1e-5
        assert difference(expected, got).relative_l2 <= most


def test_the_weights_are_those_of_the_portable_graphs() -> None:
    case = language_case()
    manifest = case.bundle.manifest
    own = manifest.variants["fused"].graphs
    assert set(own) == {contracts.attend_graph(block) for block in range(3)}

    def stored(path: str) -> dict[str, dict[str, str]]:
        return {
            one.name: {entry.key: entry.value for entry in one.external_data}
            for one in graph_of(case, path).initializer
            if one.external_data
        }

    portable = stored(manifest.graphs[NAME].file.path)
    fused = stored(own[NAME].file.path)
    tables = {name: fused.pop(name) for name in (COSINES, SINES)}
    assert fused == portable
    other = stored(own[contracts.attend_graph(0)].file.path)
    assert tables == {name: other[name] for name in tables}  # once for all blocks
    assert {one["location"] for one in tables.values()} == {LANGUAGE_WEIGHTS.rpartition("/")[2]}
