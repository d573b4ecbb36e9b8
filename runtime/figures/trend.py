"""A trend: the course of an endless series in fixed memory, and its drawing as blocks."""

from __future__ import annotations

from collections.abc import Sequence

STRETCHES = 60
_BLOCKS = "▁▂▃▄▅▆▇█"


class Trend:
    """Means over equal stretches of a series, at most STRETCHES of them.

    When a series outgrows them, neighbours merge: stretches are 1, 2, 4, ... values long.
    """

    def __init__(self) -> None:
        self._length = 1
        self._sums: list[float] = []
        self._in_last = 0

    def add(self, value: float) -> None:
        """`value` is the series' next."""
        if self._sums and self._in_last < self._length:
            self._sums[-1] += value
            self._in_last += 1
            return
        if len(self._sums) == STRETCHES:
            self._sums = [sum(self._sums[at : at + 2]) for at in range(0, STRETCHES, 2)]
            self._length *= 2
        self._sums.append(value)
        self._in_last = 1

    def means(self) -> tuple[float, ...]:
        """Mean of every stretch, in order; the last may hold fewer values."""
        if not self._sums:
            return ()
        whole = (total / self._length for total in self._sums[:-1])
        return (*whole, self._sums[-1] / self._in_last)


def sparkline(values: Sequence[float]) -> str:
    """One block character per value, its height from 0 to the greatest value."""
    greatest = max(values, default=0.0)
    if greatest <= 0.0:
        return _BLOCKS[0] * len(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * max(0.0, value) / greatest)] for value in values)
