"""The statistics of `stc-eval` against known values, and its distances against hand-made ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stc.runtime.evaluate import statistics
from stc.runtime.evaluate.fidelity import DenseFrame, compare_frames, distances, jaccard, recall
from stc.runtime.evaluate.method import Encoded


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I: method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilson_gives_published_intervals(right: int, of: int, low: float, high: float) -> None:
    found = statistics.wilson(right, of)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_wilson_of_nothing_is_nothing() -> None:
    assert statistics.wilson(0, 0) is None


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p: float) -> None:
    assert statistics.mcnemar(lost, won) == pytest.approx(p, rel=1e-9)
    assert statistics.mcnemar(won, lost) == statistics.mcnemar(lost, won)


def test_mcnemar_of_many_flips_is_nearly_chi_square_with_continuity() -> None:
    nearly = math.erfc((1200 - 1000 - 1) / math.sqrt(2 * 2200))
    assert statistics.mcnemar(1000, 1200) == pytest.approx(nearly, rel=0.02)


def test_retention_is_paired_and_the_same_every_time() -> None:
    random = np.random.default_rng(1)
    dense = random.integers(4, 12, 75).tolist()
    ours = [max(0, count - int(random.random() < 0.5)) for count in dense]
    found = statistics.retention(ours, dense)
    assert found == statistics.retention(ours, dense)
    assert found is not None
    share, (low, high) = found
    assert share == sum(ours) / sum(dense)
    assert low < share < high
    # What differs by half a question a scene is known far better than either accuracy is.
    assert high - low < 0.04
    assert statistics.retention(dense, dense) == (1.0, (1.0, 1.0))


def test_retentions_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        dense = random.binomial(12, 0.7, 30)
        ours = random.binomial(dense, 0.9)
        found = statistics.retention(ours.tolist(), dense.tolist())
        assert found is not None
        covered += found[1][0] <= 0.9 <= found[1][1]
    assert 51 <= covered <= 60


def test_retention_of_a_dense_model_that_knows_nothing_is_none() -> None:
    assert statistics.retention([1, 0], [0, 0]) is None


def test_divergence_is_that_of_the_definition() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 0.0]], np.float32)
    p, q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    first, second = statistics.log_probabilities(logits)
    assert statistics.divergence(first, second) == pytest.approx(
        (p * np.log(p / q)).sum(), rel=1e-5
    )
    assert statistics.divergence(first, first) == 0
    huge = statistics.log_probabilities(np.array([1e4, 0.0], np.float32))
    assert statistics.divergence(huge, huge) == 0


def test_figures_of_nothing_are_none() -> None:
    assert statistics.mean([]) is statistics.quantile([], 0.5) is None


def test_distances_of_tokens() -> None:
    dense = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    ours = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 3.0], [0.0, 0.0]])
    found = distances(ours, dense)
    cosines = [1.0, 0.0, 1 / math.sqrt(2), 0.0]
    assert found["cosine"] == pytest.approx(np.mean(cosines))
    assert found["cosine_p5"] == pytest.approx(np.quantile(cosines, 0.05))
    assert found["cosine_min"] == 0
    assert found["relative_l2"] == pytest.approx(math.sqrt((4 + 4 + 9) / 14))


def test_recall_counts_tokens_that_changed_most() -> None:
    reference = np.zeros((8, 3))
    hidden = np.arange(8)[:, None] * np.ones(3)
    found = recall(np.array([0, 5, 6, 7]), hidden, reference)
    assert found == {"recall": 0.75, "recall_chance": 0.5}


def test_jaccard_of_kept_tokens() -> None:
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4])) == 0.5
    assert jaccard(np.array([], np.int64), np.array([], np.int64)) == 1


def test_frames_are_compared_with_their_own_reference() -> None:
    """The reference is the method's last frame of which everything was computed."""
    random = np.random.default_rng(0)
    dense = [DenseFrame(random.random((4, 2)), random.random((6, 3)), 100) for _ in range(5)]
    dense[4].hidden[:] = dense[3].hidden  # nothing changed but two tokens
    dense[4].hidden[[1, 4]] += 1
    everything = np.arange(4)

    def encoded(index: int, recomputed: list[int] | None) -> Encoded:
        chosen = None if recomputed is None else np.array(recomputed, np.int64)
        tokens = dense[index].tokens
        return Encoded(tokens, everything, tokens, chosen, 50)

    frames = [
        encoded(0, None),
        encoded(1, [0]),
        encoded(2, []),
        encoded(3, None),
        encoded(4, [1, 4]),
    ]
    found = compare_frames(frames, dense, lambda tokens: np.array([0, 1], np.int64))
    assert [one.since for one in found] == [0, 1, 2, 0, 1]
    assert [one.recall is None for one in found] == [True, False, True, True, False]
    assert found[4].recall == 1
    assert found[4].recall_chance == pytest.approx(2 / 6)
    assert {one.jaccard for one in found} == {0.5}
    assert found[1].cosine == pytest.approx(1)
    assert (found[1].macs, found[1].dense_macs, found[1].kept) == (50, 100, 4)
