"""When frames are shown, and which are taken.

A clock gives presentation times that start at 0, never run backwards and stay near the truth; a
sampler takes frames at a lower rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from statistics import median
from typing import Generic, TypeVar

from stc.shell.ranges import real

DISORDER_PERIODS = 3
"""Stamps out of order by up to this many frame periods are disorder, by more a jump."""
LOOK_AHEAD = 9
"""Frames behind a jump that are asked whether it is true; odd, as of an even number as many strays
as others may lie before and behind them."""
MAX_ALIKE = 4
"""Frames that may repeat the stamp of the one before; that of more is stuck, and says nothing."""
LONGEST_PAUSE_S = 30 * 3600.0
"""A longer one is a new zero."""
LONGEST_PAUSE_OF_RESTARTING_S = 600.0
"""The same where streams are joined without new stamps, as in MPEG-TS."""
WALL_LAG_S = 0.5
"""How far a live stream's stamps may lie behind the wall clock, from one late frame to the next."""

STRAY, PAUSE, NEW_ZERO = 1.0, 0.9, 4.0
"""How unlikely each is: what explains a file's stamps with the least of them is taken for true.

Rising stamps of any rate are pauses rather than strays; four strays in a row may pass for a jump.
"""

_ROUNDING_S = 1e-6
_STEPS = 9
FINEST_ROUNDING_S = 1e-6
COARSEST_ROUNDING_S = 1e-3
"""Cameras stamp to the microsecond, Matroska and FLV to the millisecond."""

_Item = TypeVar("_Item")


class Clock:
    """Turns the stamps a source gives its frames into times a stream can rely on.

    Times start at 0 and never run backwards, whatever the stamps do. Beyond that:

    - A file's times are those of its stamps, long pauses included. Where stamps jump, the frames
      that follow decide: if they go on from before, the jump was a stray stamp, and its frame
      stands one period behind the one before it; if they go on from there, ahead was a pause and
      back a new zero (joined and looping files, stamps that wrapped round), which goes on one
      period later. Ahead by more than `longest_pause_s` is a new zero as well. Frames without
      a stamp, or with one that is stuck, are a period apart. So strays cost a frame's period at
      most, and only their own frames, as long as they are fewer than half of the frames of any
      stretch, at most three in a row, and none of the last three; or every other frame but the
      last, all moved alike.
    - A live source's times are those of its stamps while these rise and agree with the wall clock:
      never ahead of it, at most WALL_LAG_S behind. Else a frame's time is when it arrived. So
      stalls, bursts, reconnections and strays cost no more than WALL_LAG_S, and while they last.

    period_s: time between two frames, until the stamps tell.
    """

    def __init__(self, period_s: float, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        self._longest_pause_s = longest_pause_s
        self._period_s = period_s
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._last_s: float | None = None
        self._zero_s: float | None = None
        self._arrived_zero_s = 0.0
        self._stamp_s: float | None = None
        self._alike = 0
        self._strays = 0

    def time_s(
        self,
        stamp_s: float | None,
        following: Iterable[float | None] = (),
        *,
        arrived_s: float | None = None,
    ) -> float:
        """Seconds from the first frame to the frame stamped `stamp_s`; None has no stamp.

        following: the stamps of the frames that come next; read only at a jump, LOOK_AHEAD at most.
        arrived_s: of a live source's frame, when it came, on any clock that runs evenly.
        """
        if self._last_s is None:
            time_s, self._zero_s, self._stamp_s = 0.0, stamp_s, stamp_s
            self._arrived_zero_s = arrived_s or 0.0
        elif arrived_s is not None:
            time_s = self._beside_wall(stamp_s, arrived_s - self._arrived_zero_s, self._last_s)
        else:
            time_s = self._among_stamps(stamp_s, self._last_s, following)
        self._last_s = time_s
        return time_s

    def _beside_wall(self, stamp_s: float | None, wall_s: float, last_s: float) -> float:
        if stamp_s is not None and self._zero_s is not None:
            time_s = stamp_s - self._zero_s
            if max(last_s, wall_s - WALL_LAG_S) <= time_s <= wall_s:
                return time_s
        if stamp_s is not None:
            self._zero_s = stamp_s - wall_s
        return max(wall_s, last_s)

    def _among_stamps(
        self, stamp_s: float | None, last_s: float, following: Iterable[float | None]
    ) -> float:
        next_s = last_s + self._period_s
        self._alike = self._alike + 1 if stamp_s == self._stamp_s else 0
        self._stamp_s = stamp_s
        if stamp_s is None or self._alike > MAX_ALIKE:
            # What was held until this was known is made good.
            is_known_now = stamp_s is not None and self._alike == MAX_ALIKE + 1
            return next_s + is_known_now * MAX_ALIKE * self._period_s
        if self._zero_s is None:
            self._zero_s = stamp_s - next_s
            return next_s
        time_s = stamp_s - self._zero_s
        if abs(time_s - last_s) <= self._slack_s:
            self._learn(time_s - last_s)
            return max(time_s, last_s)
        if self._is_stray(time_s, last_s, following):
            self._strays += 1
            return next_s
        if last_s <= time_s <= last_s + self._longest_pause_s:
            self._learn(time_s - last_s)
            return time_s
        self._zero_s = stamp_s - next_s
        return next_s

    @property
    def _slack_s(self) -> float:
        return DISORDER_PERIODS * self._period_s + _ROUNDING_S

    def _learn(self, step_s: float) -> None:
        if step_s > 0:
            self._steps.append(step_s)
        if len(self._steps) >= DISORDER_PERIODS:
            self._period_s = median(self._steps)

    def _is_stray(self, time_s: float, last_s: float, following: Iterable[float | None]) -> bool:
        """Whether fewer faults explain the next frames if the stamp at `time_s` is left out.

        Where there are none, a source that had strays before is not believed.
        """
        line = [(0, last_s), (1, time_s)]
        for ahead, stamp_s in enumerate(islice(following, LOOK_AHEAD), 2):
            if stamp_s is not None:
                line.append((ahead, stamp_s - (self._zero_s or 0.0)))
        if len(line) == 2:
            return self._strays > 0
        end = len(line)
        # Of the frames behind each, if it is no stray.
        least = [0.0] * end

        def least_by(at: int, next_at: int) -> float:
            """The same where the next that is no stray is `next_at`; `end` when there is none."""
            strays = STRAY * (next_at - at - 1)
            if next_at == end:
                return strays
            return strays + self._faults_of_step(line[at], line[next_at]) + least[next_at]

        for at in range(end - 1, 0, -1):
            least[at] = min(least_by(at, next_at) for next_at in range(at + 1, end + 1))
        return min(least_by(0, next_at) for next_at in range(2, end + 1)) < least_by(0, 1)

    def _faults_of_step(self, before: tuple[int, float], after: tuple[int, float]) -> float:
        step_s = after[1] - before[1]
        if abs(step_s - (after[0] - before[0]) * self._period_s) <= self._slack_s:
            return 0.0
        return PAUSE if 0 <= step_s <= self._longest_pause_s else NEW_ZERO


class Foreseen(Iterator[_Item], Generic[_Item]):
    """`items` in order, of which those that come next can be seen before they are taken.

    What `items` raises is raised when its turn comes.
    """

    def __init__(self, items: Iterator[_Item]) -> None:
        self._items = items
        self._seen: deque[_Item] = deque()
        self._failure: Exception | None = None

    def __next__(self) -> _Item:
        if self._seen:
            return self._seen.popleft()
        if self._failure is not None:
            raise self._failure
        return next(self._items)

    def coming(self) -> Iterator[_Item]:
        """The items that come next, the nearest first; nothing is taken."""
        yield from list(self._seen)
        while self._failure is None:
            try:
                item = next(self._items)
            except StopIteration:
                return
            except Exception as error:
                self._failure = error
                return
            self._seen.append(item)
            yield item


class FrameSampler:
    """Takes, for each target time k/fps, the first frame that is not earlier.

    A frame is taken at most once, so a rate above the source's takes every frame once.
    fps: frames per second, or None for every frame.
    tick_s: the source's unit of time. Stamps are rounded to it, so a frame that is early by less
        than a tick (or a millisecond) counts as on time.

    Raises SettingsError naming --fps when fps is not a positive finite number.
    """

    def __init__(self, fps: float | None, tick_s: float) -> None:
        if fps is not None:
            fps = real("--fps", fps, "a finite number above 0", above=0)
        self._slack_s = min(max(tick_s, FINEST_ROUNDING_S), COARSEST_ROUNDING_S)
        # Targets closer together than the rounding tell no two frames apart.
        self._fps = None if fps is None or fps * self._slack_s >= 1 else fps
        self._next = 0

    def takes(self, time_s: float) -> bool:
        """Whether the frame at `time_s` is taken; call once per frame, times never decreasing."""
        if self._fps is None:
            return True
        time_s += self._slack_s
        if time_s < self._next / self._fps:
            return False
        self._next = math.floor(time_s * self._fps) + 1
        return True


def expected_frames(frames: int | None, rate: float | None, fps: float | None) -> int | None:
    """How many of `frames` at `rate` per second a FrameSampler of `fps` takes; None if unknown."""
    if frames is None or fps is None:
        return frames
    if rate is None:
        return None
    if fps >= rate:
        return frames
    return min(frames, math.ceil(round(frames / rate * fps, 6)))
