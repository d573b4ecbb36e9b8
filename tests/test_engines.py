"""Engines keep their protocol, on ONNX Runtime and in numpy: what they return, where they write,
and what they say of a mistake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import HIDDEN, KEY, VALUE
from stc.engines.engine import Backend
from stc.engines.onnxruntime_backend import (
    OnnxRuntimeBackend,
)
from stc.errors import BundleError, EngineError
from stc.method.graphs import (
    ATTENTION,
    INDICES,
    SCORE,
    SELECT,
    reference_graph,
)
from tests.graph_files import graph_file
from tests.oracle.backend import OracleBackend
from tests.vision_cases import GOLDEN, Exported, numpy_weights

Array = NDArray[Any]
Exporting = Callable[[str], Exported]

BLOCK = reference_graph(1)


@pytest.fixture
def case(exported: Exporting) -> Exported:
    return exported(GOLDEN[0])


@pytest.fixture(params=["onnxruntime", "oracle"])
def backend(request: pytest.FixtureRequest, case: Exported) -> Backend:
    if request.param == "onnxruntime":
        return OnnxRuntimeBackend(case.bundle)
    return OracleBackend(*numpy_weights(case.weights))


@pytest.fixture
def onnxruntime_backend(case: Exported) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(case.bundle)


def block_inputs(seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {HIDDEN: random.normal(size=(25, 32)).astype(np.float32)}


# Tensors.


def test_a_tensor_holds_a_copy_of_its_array(backend: Backend) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = backend.to_device(array)
    array[:] = -1
    np.testing.assert_array_equal(backend.to_host(tensor), [[0, 1, 2], [3, 4, 5]])


def test_an_array_read_back_belongs_to_the_caller(backend: Backend) -> None:
    tensor = backend.to_device(np.zeros(3, np.int64))
    backend.to_host(tensor)[:] = 7
    np.testing.assert_array_equal(backend.to_host(tensor), [0, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64])
def test_an_empty_tensor_has_its_shape_and_dtype(backend: Backend, dtype: type) -> None:
    array = backend.to_host(backend.empty((2, 5), dtype))
    assert array.shape == (2, 5)
    assert array.dtype == dtype


def test_what_is_not_contiguous_arrives_as_it_is(backend: Backend) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(backend.to_host(backend.to_device(array)), array)


# Outputs.


def test_outputs_not_asked_for_are_not_returned(backend: Backend) -> None:
    engine = backend.load(BLOCK)
    inputs = {name: backend.to_device(array) for name, array in block_inputs().items()}
    everything = engine(inputs)
    assert set(everything) == {KEY, VALUE, ATTENTION}
    for name in (KEY, ATTENTION):
        some = engine(inputs, {name: None})
        assert list(some) == [name]
        np.testing.assert_array_equal(
            backend.to_host(some[name]), backend.to_host(everything[name])
        )


def test_outputs_go_by_name_whatever_their_order(backend: Backend) -> None:
    engine = backend.load(BLOCK)
    inputs = {name: backend.to_device(array) for name, array in block_inputs().items()}
    everything = {name: backend.to_host(value) for name, value in engine(inputs).items()}
    assert not np.array_equal(everything[KEY], everything[VALUE])
    for order in ((KEY, VALUE), (VALUE, KEY)):
        outputs = engine(inputs, dict.fromkeys(order))
        for name in order:
            np.testing.assert_array_equal(backend.to_host(outputs[name]), everything[name])


def test_an_output_is_written_into_the_tensor_given_for_it(backend: Backend) -> None:
    engine = backend.load(BLOCK)
    inputs = {name: backend.to_device(array) for name, array in block_inputs().items()}
    expected = backend.to_host(engine(inputs)[KEY])
    given = backend.to_device(np.full((25, 32), np.nan, np.float32))
    outputs = engine(inputs, {VALUE: None, KEY: given})
    np.testing.assert_array_equal(backend.to_host(given), expected)
    np.testing.assert_array_equal(backend.to_host(outputs[KEY]), expected)

    # What is returned is that tensor: the next run changes both.
    other = {name: backend.to_device(array) for name, array in block_inputs(1).items()}
    engine(other, {KEY: given})
    np.testing.assert_array_equal(backend.to_host(outputs[KEY]), backend.to_host(given))
    assert not np.array_equal(backend.to_host(given), expected)


def test_an_output_of_its_own_outlives_the_next_run(backend: Backend) -> None:
    engine = backend.load(BLOCK)
    first, second = (
        {name: backend.to_device(array) for name, array in block_inputs(seed).items()}
        for seed in (0, 1)
    )
    key = engine(first)[KEY]
    expected = backend.to_host(key)
    assert not np.array_equal(backend.to_host(engine(second)[KEY]), expected)
    np.testing.assert_array_equal(backend.to_host(key), expected)


def test_the_given_tensor_lies_where_it_lay(onnxruntime_backend: OnnxRuntimeBackend) -> None:
    engine = onnxruntime_backend.load(BLOCK)
    inputs = {name: onnxruntime_backend.to_device(a) for name, a in block_inputs().items()}
    given = onnxruntime_backend.empty((25, 32), np.float32)
    address = given.data_ptr()
    assert engine(inputs, {KEY: given})[KEY].data_ptr() == address == given.data_ptr()


@pytest.mark.parametrize("count", [1, 3, 25])
def test_as_many_tokens_are_selected_as_asked_for(backend: Backend, count: int) -> None:
    score = np.random.default_rng(0).permutation(25).astype(np.float32)
    inputs: dict[str, Array] = {SCORE: score, contracts.COUNT: np.array([count], np.int64)}
    engine = backend.load(SELECT)
    outputs = engine({name: backend.to_device(array) for name, array in inputs.items()})
    chosen = backend.to_host(outputs[INDICES])
    assert chosen.dtype == np.int64
    np.testing.assert_array_equal(chosen, np.sort(np.argsort(score)[:count]))


# Mistakes.


def wrong_inputs(name: str) -> dict[str, Array]:
    inputs = block_inputs()
    match name:
        case "unknown":
            inputs["pixels"] = inputs.pop(HIDDEN)
        case "one too many":
            inputs["pixels"] = inputs[HIDDEN]
        case "missing":
            del inputs[HIDDEN]
        case "shape":
            inputs[HIDDEN] = inputs[HIDDEN][:24]
        case "rank":
            inputs[HIDDEN] = inputs[HIDDEN][None]
        case "dtype":
            inputs[HIDDEN] = inputs[HIDDEN].astype(np.float64)
        case _:
            raise AssertionError(name)
    return inputs


@pytest.mark.parametrize(
    "mistake", ["unknown", "one too many", "missing", "shape", "rank", "dtype"]
)
def test_wrong_inputs_are_an_error_that_names_the_graph(
    onnxruntime_backend: OnnxRuntimeBackend, mistake: str
) -> None:
    engine = onnxruntime_backend.load(BLOCK)
    inputs = {name: onnxruntime_backend.to_device(a) for name, a in wrong_inputs(mistake).items()}
    with pytest.raises(EngineError, match=f"^{BLOCK}: ONNX Runtime failed") as caught:
        engine(inputs)
    assert "\n" not in str(caught.value)

    right = {name: onnxruntime_backend.to_device(a) for name, a in block_inputs().items()}
    assert set(engine(right)) == {KEY, VALUE, ATTENTION}


@pytest.mark.parametrize("mistake", ["unknown", "shape", "dtype"])
def test_wrong_outputs_are_an_error_that_names_the_graph(
    onnxruntime_backend: OnnxRuntimeBackend, mistake: str
) -> None:
    engine = onnxruntime_backend.load(BLOCK)
    inputs = {name: onnxruntime_backend.to_device(a) for name, a in block_inputs().items()}
    empty = onnxruntime_backend.empty
    outputs = {
        "unknown": {"tokens": None},
        "shape": {KEY: empty((24, 32), np.float32)},
        "dtype": {KEY: empty((25, 32), np.float16)},
    }[mistake]
    with pytest.raises(EngineError, match=f"^{BLOCK}: ONNX Runtime failed"):
        engine(inputs, outputs)


def test_the_oracle_refuses_other_inputs_and_graphs(case: Exported) -> None:
    oracle = OracleBackend(*numpy_weights(case.weights))
    with pytest.raises(EngineError, match=f"^{BLOCK}: inputs"):
        oracle.load(BLOCK)({"pixels": block_inputs()[HIDDEN]})
    with pytest.raises(EngineError, match=r"^keys_99: no such graph"):
        oracle.load("keys_99")


def test_a_graph_the_bundle_does_not_have_is_refused(
    onnxruntime_backend: OnnxRuntimeBackend,
) -> None:
    with pytest.raises(BundleError, match="keys_99"):
        onnxruntime_backend.load("keys_99")


@pytest.mark.parametrize("damage", ["cut", "gone", "no weights"])
def test_a_graph_that_cannot_be_loaded_is_an_error_that_names_it(
    case: Exported, damage: str, tmp_path: Path
) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(case.bundle.root, root)
    bundle = replace(case.bundle, root=root)
    graph = graph_file(bundle, BLOCK)
    if damage == "cut":
        graph.write_bytes(graph.read_bytes()[:100])
    elif damage == "gone":
        graph.unlink()
    else:
        (root / "graphs" / "weights.bin").unlink()
    with pytest.raises(BundleError, match=rf"^{root}/graphs/\S+: is (truncated|missing)") as caught:
        OnnxRuntimeBackend(bundle).load(BLOCK)
    assert "\n" not in str(caught.value)
