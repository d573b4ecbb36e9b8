"""How the next text token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.shell.ranges import real, whole_fields

MAX_SEED = 2**63 - 1
"""What every reader of JSON still reads."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: 0 takes the likeliest token (greedy). top_p: draws from the likeliest tokens
    whose probabilities add up to it. seed: equal seeds draw alike.

    Raises SettingsError naming the flag.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        temperature = real("--temperature", self.temperature, "a finite number, 0 or more", least=0)
        object.__setattr__(self, "temperature", temperature)
        top_p = real("--top-p", self.top_p, "0 < P <= 1", above=0, most=1)
        object.__setattr__(self, "top_p", top_p)
        whole_fields(self, {"seed": (0, MAX_SEED)})


GREEDY = Sampling()
TRIED = (1024, 16384)
"""How many of the likeliest tokens are sorted before the whole vocabulary is."""


class Sampler:
    """Draws one answer's tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token by `logits` [V]; of equals the lower id, when greedy."""
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        below = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # next to 0 only the likeliest token keeps a share
            powers = np.exp(below / self._sampling.temperature)
        if self._sampling.top_p == 1.0:
            return self._draw(powers)
        ids, shares = nucleus(powers, self._sampling.top_p)
        return int(ids[self._draw(shares)])

    def _draw(self, weights: NDArray[np.float64]) -> int:
        """A place in `weights`, as likely as its share of their sum."""
        reached = np.cumsum(weights)
        return int(np.searchsorted(reached / reached[-1], self._random.random(), side="right"))


def nucleus(
    powers: NDArray[np.float64], top_p: float, tried: tuple[int, ...] = TRIED
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids and shares of the likeliest of `powers` [V] whose shares reach `top_p`, in that order;
    of equals the lower id comes first.

    So many of the likeliest as `tried` says are sorted, one number after the other, and all of
    them only when those do not reach it.
    """
    total = powers.sum()
    for count in (*tried, len(powers)):
        likely = np.arange(len(powers))
        if count < len(powers):
            likely = np.flatnonzero(powers >= np.partition(powers, -count)[-count])
        order = likely[np.argsort(-powers[likely], kind="stable")]
        shares = powers[order] / total
        before = np.cumsum(shares) - shares
        if before[-1] >= top_p:
            break
    # The likeliest token always stays, however small top_p is.
    kept = before < top_p
    return order[kept], shares[kept]
