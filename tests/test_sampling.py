"""Sampling: which token follows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.language.sampling import Sampler, Sampling, nucleus

LOGITS = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
DRAWS = 4000


def shares(sampling: Sampling) -> list[float]:
    sampler = Sampler(sampling)
    counted = Counter(sampler(LOGITS) for _ in range(DRAWS))
    return [counted[token] / DRAWS for token in range(len(LOGITS))]


def test_greedy_takes_the_likeliest_and_of_equals_the_first() -> None:
    assert Sampler(Sampling())(LOGITS) == 1
    assert Sampler(Sampling())(np.array([0, 2, 2], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature: float) -> None:
    powers = np.exp(LOGITS / temperature)
    drawn = shares(Sampling(temperature=temperature, seed=1))
    assert np.allclose(drawn, powers / powers.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.9, [1, 2, 3])]
)
def test_top_p_draws_from_the_likeliest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    drawn = shares(Sampling(temperature=1.0, top_p=top_p))
    assert [token for token, share in enumerate(drawn) if share] == kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999, 1.0 - 1e-12])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0], ids=["all equal", "flat", "peaked"])
def test_top_p_without_a_full_sort_is_exactly_that_with_one(top_p: float, spread: float) -> None:
    random = np.random.default_rng(0)
    for ties in (False, True):
        logits = random.standard_normal(5000) * spread
        powers = np.exp(np.round(logits, 1) if ties else logits)
        order = np.argsort(-powers, kind="stable")
        shares = powers[order] / powers.sum()
        kept = np.cumsum(shares) - shares < top_p
        for tried in ((), (1,), (7, 1024), (9999,)):
            ids, of_ids = nucleus(powers, top_p, tried)
            assert np.array_equal(ids, order[kept])
            assert np.array_equal(of_ids, shares[kept])


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_draw_from_a_full_size_vocabulary_takes_no_full_sort(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(0).standard_normal(152_000).astype(np.float32) * 5
    sizes = []
    argsort = np.argsort

    def watched(array: NDArray[np.float64], **options: Any) -> NDArray[np.int64]:
        sizes.append(len(array))
        order: NDArray[np.int64] = argsort(array, **options)
        return order

    monkeypatch.setattr(np, "argsort", watched)
    assert 0 <= Sampler(Sampling(temperature=1.0, top_p=top_p))(logits) < len(logits)
    assert sum(sizes) < 20_000


def test_equal_seeds_draw_alike() -> None:
    assert shares(Sampling(temperature=1.0, seed=3)) == shares(Sampling(temperature=1.0, seed=3))
    assert shares(Sampling(temperature=1.0, seed=3)) != shares(Sampling(temperature=1.0, seed=4))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"--{field.replace('_', '-')}: got {value}"):
        Sampling(**{field: value})  # type: ignore[arg-type]
