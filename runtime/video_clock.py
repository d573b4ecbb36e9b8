"""A clock: presentation times that start at 0 and never run backwards."""

from __future__ import annotations

DISORDER_PERIODS = 3
"""Stamps out of order by up to this many frame periods are disorder, by more a new clock."""


class Clock:
    """Turns the stamps a source gives its frames into times a stream can rely on.

    Joined or looping files and reconnected cameras start their stamps again, some packets have
    none, and damaged files deliver frames out of order.

    period_s: time between two frames where the stamps do not tell.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._gap_s = period_s
        self._last_s: float | None = None
        self._zero_s: float | None = None

    def time_s(self, stamp_s: float | None) -> float:
        """Seconds from the first frame to the frame stamped `stamp_s`; None has no stamp.

        At least the time given out before.
        """
        time_s = self._place(stamp_s)
        self._last_s = time_s
        return time_s

    def restart(self, gap_s: float) -> None:
        """The next frame comes `gap_s` after the last one, whatever its stamp says."""
        self._zero_s = None
        self._gap_s = gap_s

    def _place(self, stamp_s: float | None) -> float:
        next_s = 0.0 if self._last_s is None else self._last_s + self._gap_s
        if stamp_s is None:
            return next_s
        if self._zero_s is None or self._last_s is None:
            self._gap_s = self._period_s
            self._zero_s = stamp_s - next_s
            return next_s
        time_s = stamp_s - self._zero_s
        if time_s < self._last_s - DISORDER_PERIODS * self._period_s:
            self._zero_s = stamp_s - next_s
            return next_s
        return max(time_s, self._last_s)
