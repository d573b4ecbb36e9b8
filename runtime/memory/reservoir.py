"""A reservoir: quantiles of an endless series in fixed memory."""

from __future__ import annotations

import random
from array import array

import numpy as np

CAPACITY = 4096


class Reservoir:
    """A uniform sample of the values added so far, and their exact count, sum and maximum.

    Holds every value up to CAPACITY of them, so until then quantiles are exact; afterwards each
    value is in the sample with the same probability (Vitter's algorithm R). The same series
    gives the same sample.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.greatest = 0.0
        self._sample = array("d")
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """`value` (not negative) is part of the series."""
        self.count += 1
        self.total += value
        self.greatest = max(self.greatest, value)
        if len(self._sample) < CAPACITY:
            self._sample.append(value)
        elif (place := self._random.randrange(self.count)) < CAPACITY:
            self._sample[place] = value

    @property
    def mean(self) -> float:
        """Exact mean; 0 of an empty series."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The value below which `share` (0..1) of the series lies; 0 of an empty series."""
        return float(np.quantile(np.asarray(self._sample), share)) if self._sample else 0.0
