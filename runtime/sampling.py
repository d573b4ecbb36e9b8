"""How the next text token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError


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
        if not 0.0 <= self.temperature < float("inf"):
            raise SettingsError("--temperature", f"got {self.temperature}", "0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise SettingsError("--top-p", f"got {self.top_p}", "0 < P <= 1")
        if self.seed < 0:
            raise SettingsError("--seed", f"got {self.seed}", "0 or more")


GREEDY = Sampling()


class Sampler:
    """Draws one answer's tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token by `logits` [V]; of equals the lower id, when greedy."""
        if self._sampling.temperature == 0.0:
            return int(logits.argmax())
        scaled = (logits.astype(np.float64) - logits.max()) / self._sampling.temperature
        powers = np.exp(scaled)
        order = np.argsort(-powers, kind="stable")
        shares = powers[order] / powers.sum()
        before = np.cumsum(shares) - shares
        # The likeliest token always stays, however small top_p is.
        shares[before >= self._sampling.top_p] = 0.0
        return int(order[self._random.choice(len(order), p=shares / shares.sum())])
