"""The cacher's oracle: golden files, identities, and equality with torch's operators."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc.contracts import Contract
from stc.manifest import Grid
from stc.method.graphs import (
    COMPARE_CONTRACT,
    EMBED_CONTRACT,
    KEYS_CONTRACT,
    MERGE_CONTRACT,
    MLP_CONTRACT,
    PLACE_CONTRACT,
    PROJECT_CONTRACT,
    REFERENCE_CONTRACT,
    SELECT_CONTRACT,
    UPDATE_CONTRACT,
)
from stc.settings import Selection, Settings
from tests.oracle import vision as oracle
from tests.oracle.layers import ACTIVATIONS, Affine, EmbedWeights, ProjectorWeights, TowerWeights
from tests.oracle.stream import forward
from tests.oracle.weights import projector_weights, tower_weights
from tests.squares import square_grid

Array = NDArray[Any]

GOLDEN = sorted((Path(__file__).parent / "data").glob("cacher_*.npz"))
RELATIVE = 1e-4


def tower_of(path: Path, dtype: type[np.floating] = np.float32) -> TowerWeights:
    with np.load(path) as golden:
        return tower_weights(
            golden,
            heads=int(golden["num_heads"]),
            blocks=int(golden["num_layers"]),
            prefix="w.",
            dtype=dtype,
        )


@pytest.fixture(scope="module")
def tower() -> TowerWeights:
    return tower_of(GOLDEN[0], np.float64)


@pytest.fixture(scope="module")
def frames() -> Array:
    with np.load(GOLDEN[0]) as golden:
        return np.asarray(golden["pixel_values"])


def relative_l2(got: Array, expected: Array) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def random_projector(width: int = 6, language: int = 10) -> ProjectorWeights:
    rng = np.random.default_rng(0)
    first = Affine(rng.normal(size=(language, width)), rng.normal(size=language))
    second = Affine(rng.normal(size=(language, language)), rng.normal(size=language))
    return ProjectorWeights(first, second, Grid(rows=7, columns=7, pooled_rows=4, pooled_columns=4))


def test_both_golden_files_are_there() -> None:
    assert len(GOLDEN) == 2


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams_are_reproduced(path: Path) -> None:
    golden = np.load(path)
    weights = tower_of(path)
    settings = Settings(
        reference_interval=int(golden["interval"]), recompute_ratio=float(golden["ratio"])
    )
    references = None
    for index, pixel_values in enumerate(golden["pixel_values"]):
        if settings.is_reference(index):
            references = None
        count = settings.recomputed(golden["hidden_states"].shape[2])
        result = forward(weights, pixel_values, references, count=count)
        references = result.references

        states = zip(result.hidden_states, golden["hidden_states"][index], strict=True)
        assert max(relative_l2(*pair) for pair in states) < RELATIVE
        if settings.is_reference(index):
            assert (golden["update_indices"][index] == -1).all()
        else:
            np.testing.assert_array_equal(result.indices, golden["update_indices"][index])
        dense = forward(weights, pixel_values).hidden_states[-1]
        assert relative_l2(dense, golden["dense_last"][index]) < RELATIVE


def test_recomputing_every_token_equals_a_reference_frame(
    tower: TowerWeights, frames: Array
) -> None:
    references = forward(tower, frames[0]).references
    dense = forward(tower, frames[1]).hidden_states
    for count in (None, len(dense[0])):
        reuse = forward(tower, frames[1], references, count=count).hidden_states
        np.testing.assert_allclose(reuse, dense, rtol=1e-12)


@pytest.mark.parametrize("selection", ["layerwise", "shared"])
def test_token_never_selected_moves_by_the_change_of_its_own_embedding(
    tower: TowerWeights, frames: Array, selection: Selection
) -> None:
    reference = forward(tower, frames[0])
    reuse = forward(tower, frames[1], reference.references, count=4, selection=selection)
    selected = np.unique(np.concatenate(reuse.indices))
    never = np.setdiff1d(np.arange(len(reuse.hidden_states[0])), selected)
    change = reuse.hidden_states[0] - reference.hidden_states[0]
    expected = reference.hidden_states[-1] + change

    assert len(never) >= len(change) - 3 * 4 > 0
    np.testing.assert_allclose(reuse.hidden_states[-1][never], expected[never], rtol=1e-12)
    assert relative_l2(reuse.hidden_states[-1][selected], expected[selected]) > 1e-3


def test_unchanged_frame_reuses_without_error(tower: TowerWeights, frames: Array) -> None:
    reference = forward(tower, frames[0])
    reuse = forward(tower, frames[0], reference.references, count=3)
    np.testing.assert_allclose(reuse.hidden_states, reference.hidden_states, rtol=1e-12)


def test_shared_selection_is_that_of_block_0(tower: TowerWeights, frames: Array) -> None:
    first, second, third = forward(tower, frames[0]).references
    # Other keys in block 1 make it choose others: by itself it all but repeats block 0's choice.
    turned = (first, replace(second, key=second.key[::-1]), third)
    layerwise = forward(tower, frames[1], turned, count=6).indices
    shared = forward(tower, frames[1], turned, count=6, selection="shared").indices

    assert not np.array_equal(layerwise[1], layerwise[0])
    np.testing.assert_array_equal(shared, [layerwise[0]] * 3)


def test_reuse_frame_hands_its_references_on_unchanged(tower: TowerWeights, frames: Array) -> None:
    references = forward(tower, frames[0]).references
    before = [(block.key.copy(), block.value.copy(), block.residual.copy()) for block in references]
    assert forward(tower, frames[1], references, count=6).references is references
    for block, copies in zip(references, before, strict=True):
        for array, copy in zip((block.key, block.value, block.residual), copies, strict=True):
            np.testing.assert_array_equal(array, copy)


def test_update_of_every_token_reads_no_reference(tower: TowerWeights, frames: Array) -> None:
    hidden = oracle.embed(tower.embed, frames[0])
    block = tower.blocks[0]
    spoilt, everything = np.full_like(hidden, np.nan), np.arange(len(hidden))
    key, _, expected = oracle.reference(block, hidden)
    np.testing.assert_array_equal(oracle.keys(block, hidden), key)
    places = oracle.place(everything, len(hidden))
    rows, got = oracle.update(block, hidden, key, spoilt, everything, places)
    np.testing.assert_array_equal(rows, hidden)
    np.testing.assert_array_equal(got, expected)
    residual = oracle.mlp(block, rows, got)
    np.testing.assert_array_equal(oracle.merge(hidden, spoilt, residual, places), hidden + residual)


def test_score_is_the_cosine_over_all_heads(tower: TowerWeights, frames: Array) -> None:
    hidden = oracle.embed(tower.embed, frames[0])
    ref_key = np.random.default_rng(1).normal(size=hidden.shape)
    ref_key[5] = 0
    key = oracle.keys(tower.blocks[0], hidden)
    for token, cosine in enumerate(oracle.compare(key, ref_key)):
        a, b = key[token], ref_key[token]
        expected = 0.0 if token == 5 else a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert cosine == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_select_takes_the_lowest_and_of_equals_the_lower_index(
    scores: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(scores)))
    expected = sorted(sorted(range(len(scores)), key=lambda token: (scores[token], token))[:count])
    assert oracle.select(np.array(scores, np.float32), count).tolist() == expected


@pytest.mark.parametrize("count", [0, 5, -1])
def test_select_refuses_a_count_outside_the_frame(count: int) -> None:
    with pytest.raises(ValueError, match="of 4 tokens"):
        oracle.select(np.zeros(4, np.float32), count)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_keep_the_graphs_contracts(frames: Array, dtype: type[np.floating]) -> None:
    weights = tower_of(GOLDEN[0], dtype)
    block = weights.blocks[0]
    tokens, width = weights.embed.position.shape
    projector = random_projector(width, 10)
    projector = projector_weights(
        {
            "linear_1.weight": projector.linear_1.weight,
            "linear_2.weight": projector.linear_2.weight,
        },
        square_grid(math.isqrt(tokens)),
        dtype=dtype,
    )
    sizes = {"T": tokens, "C": width, "M": 6, "n": 9, "D": 10}

    def check(contract: Contract, *outputs: Array) -> None:
        for port, array in zip(contract.outputs, outputs, strict=True):
            assert array.shape == tuple(sizes[symbol] for symbol in port.shape), port.name
            expected = np.dtype(dtype if port.dtype == "network" else port.dtype)
            assert array.dtype == expected, port.name

    hidden = oracle.embed(weights.embed, frames[0])
    check(EMBED_CONTRACT, hidden)
    outputs = oracle.reference(block, hidden)
    check(REFERENCE_CONTRACT, *outputs)
    ref_key, value, _ = outputs
    key = oracle.keys(block, hidden)
    check(KEYS_CONTRACT, key)
    score = oracle.compare(key, ref_key)
    check(COMPARE_CONTRACT, score)
    indices = oracle.select(score, 6)
    check(SELECT_CONTRACT, indices)
    places = oracle.place(indices, tokens)
    check(PLACE_CONTRACT, places)
    updated = oracle.update(block, hidden, key, value, indices, places)
    check(UPDATE_CONTRACT, *updated)
    residual = oracle.mlp(block, *updated)
    check(MLP_CONTRACT, residual)
    check(MERGE_CONTRACT, oracle.merge(hidden, hidden, residual, places))
    check(PROJECT_CONTRACT, oracle.project(projector, hidden))


GRIDS = [
    *map(square_grid, (1, 2, 3, 5, 8, 13, 24, 27, 28)),
    Grid(rows=5, columns=7, prefix_tokens=1, pooled_rows=3, pooled_columns=4),
    Grid(rows=9, columns=4, prefix_tokens=5, pooled_rows=2, pooled_columns=4),
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_pooling_matrix_equals_torchs_interpolate(grid: Grid) -> None:
    torch = pytest.importorskip("torch")
    identity = torch.eye(grid.patches).reshape(-1, 1, grid.rows, grid.columns)
    size = (grid.pooled_rows, grid.pooled_columns)
    expected = torch.nn.functional.interpolate(
        identity, size=size, mode="bilinear", align_corners=False
    )
    matrix = oracle.pooling_matrix(grid)
    assert matrix.dtype == np.float32
    assert not matrix[:, : grid.prefix_tokens].any()
    expected = expected.reshape(grid.patches, -1).T.numpy()
    np.testing.assert_allclose(matrix[:, grid.prefix_tokens :], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_pooling_keeps_a_constant_frame(grid: Grid) -> None:
    np.testing.assert_allclose(oracle.pooling_matrix(grid).sum(axis=1), 1.0, atol=1e-6)


def test_project_equals_torchs_projector_and_interpolate() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weights = random_projector()
    hidden = np.random.default_rng(2).normal(size=(49, 6))
    first, second = (
        [torch.from_numpy(array) for array in (layer.weight, layer.bias)]
        for layer in (weights.linear_1, weights.linear_2)
    )
    middle = functional.gelu(functional.linear(torch.from_numpy(hidden), *first))
    grid = functional.linear(middle, *second).T.reshape(1, 10, 7, 7)
    expected = functional.interpolate(grid, size=(4, 4), mode="bilinear", align_corners=False)
    tokens = oracle.project(weights, hidden)
    np.testing.assert_allclose(tokens, expected.reshape(10, 16).T.numpy(), rtol=1e-5, atol=1e-5)


def test_embed_cuts_off_what_does_not_fill_a_patch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    pixels = rng.normal(size=(3, 11, 11))
    weights = EmbedWeights(
        rng.normal(size=(5, 3, 4, 4)), rng.normal(size=5), rng.normal(size=(4, 5)), np.empty((0, 5))
    )
    patches = torch.nn.functional.conv2d(
        *map(torch.from_numpy, (pixels[None], weights.patch, weights.bias)), stride=4
    )
    expected = patches.reshape(5, 4).T.numpy() + weights.position
    np.testing.assert_allclose(oracle.embed(weights, pixels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_torchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.concatenate([np.linspace(-9, 9, 401), [-1e4, 1e4]])
    tensor = torch.from_numpy(x)
    expected = {
        "gelu": lambda: torch.nn.functional.gelu(tensor),
        "gelu_new": lambda: torch.nn.functional.gelu(tensor, approximate="tanh"),
        "gelu_pytorch_tanh": lambda: torch.nn.functional.gelu(tensor, approximate="tanh"),
    }[name]()
    np.testing.assert_allclose(ACTIVATIONS[name](x), expected.numpy(), rtol=1e-9, atol=1e-12)
    assert ACTIVATIONS[name](x.astype(np.float32)).dtype == np.float32
