"""The pruner's oracle: golden files, the formulas spelled out, properties, bounded memory."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc.method.graphs import memory_width
from stc.method.pruner import PrunerMemory, novelty
from stc.settings import SCORINGS, Scoring
from tests.oracle.vision import prune

Array = NDArray[Any]

GOLDEN = sorted((Path(__file__).parent / "data").glob("pruner_*.npz"))

scorings = pytest.mark.parametrize("scoring", SCORINGS)


def random_tokens(seed: int, pooled: int = 12, width: int = 8) -> Array:
    """float64 [n, D], channels of clearly different mean and variance."""
    rng = np.random.default_rng(seed)
    spread = rng.permutation(np.linspace(0.3, 2.0, width))
    return np.asarray(rng.normal(size=(pooled, width)) * spread + rng.normal(size=width))


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def kernels(a: Array, b: Array) -> float:
    distance = float(((a - b) ** 2).sum())
    return sum(math.exp(-distance / (2 * alpha)) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))


def test_both_golden_files_are_there() -> None:
    assert len(GOLDEN) == 2


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams_are_reproduced(path: Path) -> None:
    golden = np.load(path)
    memory = PrunerMemory("gaussian", golden["features"].shape[2], window=1)
    for tokens, expected in zip(golden["features"], golden["kept_indices"], strict=True):
        pruned = prune("gaussian", tokens, memory.mean, memory.count, len(expected))
        memory.push(pruned.frame_mean)
        np.testing.assert_array_equal(pruned.kept_indices, expected)


def test_dual_anchor_is_half_the_distance_to_each_anchor() -> None:
    past = [random_tokens(seed) for seed in range(5)]
    tokens = random_tokens(9)
    memory = PrunerMemory("dual-anchor", 8, window=3)
    for frame in past:
        memory.push(prune("dual-anchor", frame, memory.mean, memory.count, 1).frame_mean)
    temporal = np.mean([frame.mean(axis=0) for frame in past[-3:]], axis=0)
    spatial = tokens.mean(axis=0)
    expected = [0.5 * (1 - cosine(z, temporal)) + 0.5 * (1 - cosine(z, spatial)) for z in tokens]

    scores, frame_mean = novelty("dual-anchor", tokens, memory.mean, memory.count)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(frame_mean, spatial, rtol=1e-6)
    kept = prune("dual-anchor", tokens, memory.mean, memory.count, 4).kept_indices
    assert set(kept) == set(np.argsort(expected)[-4:])


def test_dual_anchors_first_frame_has_its_own_mean_as_its_past() -> None:
    tokens = random_tokens(0)
    scores, frame_mean = novelty("dual-anchor", tokens, np.zeros(8), 0)
    np.testing.assert_allclose(scores, [1 - cosine(z, tokens.mean(axis=0)) for z in tokens])
    same, _ = novelty("dual-anchor", tokens, frame_mean, 1)
    np.testing.assert_allclose(scores, same, atol=1e-6)


@pytest.mark.parametrize("fixed", [False, True])
def test_gaussian_is_the_density_at_the_centre_and_at_the_mean_of_all_frames(fixed: bool) -> None:
    scoring: Scoring = "gaussian-fixed" if fixed else "gaussian"
    stream = [random_tokens(seed) for seed in range(4)]
    memory = PrunerMemory(scoring, 8, window=1)
    for frame in stream[:-1]:
        memory.push(prune(scoring, frame, memory.mean, memory.count, 1).frame_mean)
    orders = [np.argsort(frame.var(axis=0))[:4] for frame in stream]
    assert not np.array_equal(orders[0], orders[-1])
    history = [
        frame.mean(axis=0)[orders[-1] if fixed else order]
        for frame, order in zip(stream, orders, strict=True)
    ]
    anchor = np.mean(history, axis=0)
    subset = stream[-1][:, orders[-1]]
    unit = subset / np.linalg.norm(subset, axis=1, keepdims=True)
    centre, mean = unit.mean(axis=0), anchor / np.linalg.norm(anchor)
    density = np.array([kernels(z, centre) + kernels(z, mean) for z in unit])

    scores, _ = novelty(scoring, stream[-1], memory.mean, memory.count)
    np.testing.assert_allclose(-scores, density, rtol=1e-5)
    kept = prune(scoring, stream[-1], memory.mean, memory.count, 5).kept_indices
    assert set(kept) == set(np.argsort(density)[:5])


@scorings
def test_history_of_no_frames_is_not_read(scoring: Scoring) -> None:
    tokens = random_tokens(1)
    width = memory_width(scoring, 8)
    expected, _ = novelty(scoring, tokens, np.zeros(width, np.float32), 0)
    got, _ = novelty(scoring, tokens, np.full(width, np.nan, np.float32), 0)
    np.testing.assert_array_equal(got, expected)


@scorings
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), pooled=st.integers(2, 20))
def test_kept_tokens_follow_a_permutation_of_the_frame(
    scoring: Scoring, data: st.DataObject, seed: int, pooled: int
) -> None:
    tokens = random_tokens(seed, pooled)
    count = data.draw(st.integers(1, pooled))
    order = np.array(data.draw(st.permutations(range(pooled))))
    history = random_tokens(seed + 1)[0, : memory_width(scoring, 8)]
    frames = data.draw(st.sampled_from([0.0, 1.0, 7.0]))
    scores, _ = novelty(scoring, tokens, history, frames)
    ranked = np.sort(scores)[::-1]
    # Where two scores are all but equal, rounding may decide between them.
    assume(count == pooled or ranked[count - 1] - ranked[count] > 1e-9)

    pruned = prune(scoring, tokens, history, frames, count)
    moved = prune(scoring, tokens[order], history, frames, count)
    assert set(order[moved.kept_indices]) == set(pruned.kept_indices)
    np.testing.assert_allclose(moved.frame_mean, pruned.frame_mean, rtol=1e-5, atol=1e-6)


@scorings
@given(data=st.data(), pooled=st.integers(1, 16), half=st.booleans())
def test_exactly_k_tokens_are_kept_in_order(
    scoring: Scoring, data: st.DataObject, pooled: int, half: bool
) -> None:
    tokens = random_tokens(pooled, pooled).astype(np.float16 if half else np.float32)
    count = data.draw(st.integers(1, pooled))
    width = memory_width(scoring, 8)
    kept, kept_indices, frame_mean = prune(scoring, tokens, np.zeros(width), 0, count)
    assert kept_indices.dtype == np.int64
    assert len(kept_indices) == count
    assert (np.diff(kept_indices) > 0).all()
    assert kept.dtype == tokens.dtype
    np.testing.assert_array_equal(kept, tokens[kept_indices])
    assert frame_mean.shape == (width,)
    assert frame_mean.dtype == np.float32


@scorings
def test_of_equal_tokens_the_first_are_kept(scoring: Scoring) -> None:
    tokens = np.tile(random_tokens(3)[:1].astype(np.float32), (13, 1))
    width = memory_width(scoring, 8)
    history = np.linspace(1, 2, width, dtype=np.float32)
    assert prune(scoring, tokens, history, 3, 5).kept_indices.tolist() == [0, 1, 2, 3, 4]


@scorings
def test_keeping_every_token_keeps_the_frame(scoring: Scoring) -> None:
    tokens = random_tokens(4)
    history = np.ones(memory_width(scoring, 8))
    np.testing.assert_array_equal(prune(scoring, tokens, history, 1, 12).kept, tokens)


@scorings
@pytest.mark.parametrize("count", [0, 13, -1])
def test_a_count_outside_the_frame_is_refused(scoring: Scoring, count: int) -> None:
    history = np.zeros(memory_width(scoring, 8))
    with pytest.raises(ValueError, match="of 12 tokens"):
        prune(scoring, random_tokens(0), history, 0, count)


def test_dual_anchor_remembers_the_last_frames_exactly_however_long_the_stream() -> None:
    rng = np.random.default_rng(0)
    memory = PrunerMemory("dual-anchor", 6, window=7)
    recent: list[Array] = []
    for index in range(5000):
        # A sum that subtracts what leaves it would keep the rounding of the large frames.
        scale = 1e12 if index % 50 == 0 else 1.0
        mean = (rng.normal(size=6) * scale).astype(np.float32)
        memory.push(mean)
        recent = [*recent, mean][-7:]
        assert memory.count == len(recent)
        if scale == 1.0:
            expected = np.mean(recent, axis=0, dtype=np.float64)
            np.testing.assert_allclose(memory.mean, expected, rtol=1e-5)


@pytest.mark.parametrize("scoring", ["gaussian", "gaussian-fixed"])
def test_gaussian_remembers_the_mean_of_all_frames(scoring: Scoring) -> None:
    means = np.random.default_rng(0).normal(1.0, size=(5000, 6)).astype(np.float32)
    memory = PrunerMemory(scoring, 12 if scoring == "gaussian" else 6, window=1)
    for mean in means:
        memory.push(mean)
    assert memory.count == 5000
    np.testing.assert_allclose(memory.mean, means.mean(axis=0, dtype=np.float64), rtol=1e-6)


@scorings
def test_memory_does_not_grow(scoring: Scoring) -> None:
    memory = PrunerMemory(scoring, 8, window=5)
    mean = np.ones(memory_width(scoring, 8), np.float32)
    sizes = []
    for _ in range(2000):
        memory.push(mean)
        sizes.append(len(pickle.dumps(memory)))
    assert len(set(sizes[5:])) == 1


@scorings
def test_memory_starts_empty_and_shares_no_array(scoring: Scoring) -> None:
    memory = PrunerMemory(scoring, 8, window=2)
    width = memory_width(scoring, 8)
    assert memory.count == 0
    np.testing.assert_array_equal(memory.mean, np.zeros(width, np.float32))

    pushed = np.ones(width, np.float32)
    memory.push(pushed)
    given_out = memory.mean
    pushed[:] = 7
    memory.push(np.full(width, 3, np.float32))
    np.testing.assert_array_equal(given_out, np.ones(width))
    np.testing.assert_array_equal(memory.mean, np.full(width, 2))
    assert memory.mean.dtype == np.float32


@scorings
def test_memory_refuses_a_mean_of_another_width(scoring: Scoring) -> None:
    with pytest.raises(ValueError, match="frame mean"):
        PrunerMemory(scoring, 8, window=2).push(np.zeros(5, np.float32))
