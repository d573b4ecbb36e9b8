"""What the words of a question are about: targets of heads that are thrown away after training.

A model that knows what is in a scene still has to learn that "circle" in a question means the
circle that it saw. Heads that say so at the word itself teach it in a few hundred steps; without
them nothing was learnt in ten times as many.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stc.scenes.labels import Labels
from stc.scenes.words import COLOURS, DIGITS, KINDS, SIDE

HEADS: Mapping[str, int] = {
    "colour": len(COLOURS),
    "kind": len(KINDS),
    "digit": len(DIGITS),
    "seen": 2,
    "visible": 2,
    "third": 3,
    "direction": 5,
    "rank": 4,
    "right": 2,
    "letter": 4,
    "now": 5,
    "ever": 5,
}
"""Heads by name, and between how many values each decides."""
LATE = ("right", "now", "ever")
"""Those that come last: they compare what was found, or count."""
IGNORED = -100
VISIBLE = 0.6
"""Share of a thing that must be in sight to count."""
STILL_PX = 1.0
"""Movement over two frames that is none."""

Targets = NDArray[np.int64]


class Facts:
    """What a watcher knows of `labels` after frame `frame`."""

    def __init__(self, labels: Labels, frame: int) -> None:
        self._labels, self._frame = labels, frame
        shown: NDArray[np.bool_] = labels.shown[: frame + 1] >= VISIBLE
        self._seen: NDArray[np.bool_] = np.logical_or.reduce(shown, axis=0)
        self._visible: NDArray[np.bool_] = shown[-1]
        first = np.where(self._seen, shown.argmax(0), frame + 1)
        self._rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")

    def about(self, word: str) -> Targets:
        """The targets [len(HEADS)] at a colour or kind `word` of a question."""
        things = [
            index
            for index, thing in enumerate(self._labels.things)
            if word in (thing.kind, thing.colour) and self._seen[index]
        ]
        found: dict[str, int] = {"seen": int(bool(things))}
        if len(things) == 1:
            found |= self._of(things[0])
        return _targets(found)

    def counts(self) -> Targets:
        """The targets where a question ends."""
        most = HEADS["now"] - 1
        return _targets(
            {"now": min(most, int(self._visible.sum())), "ever": min(most, int(self._seen.sum()))}
        )

    def _of(self, index: int) -> dict[str, int]:
        thing = self._labels.things[index]
        found = {
            "kind": KINDS.index(thing.kind),
            "visible": int(self._visible[index]),
            "rank": min(HEADS["rank"] - 1, int(self._rank[index])),
        }
        if thing.colour is not None:
            found["colour"] = list(COLOURS).index(thing.colour)
        if thing.digit is not None:
            found["digit"] = thing.digit
        if self._visible[index]:
            centre = self._labels.centre[self._frame, index]
            found["third"] = int(np.clip(3 * centre[0] / SIDE, 0, 2))
            found["direction"] = self._direction(index)
        return found

    def _direction(self, index: int) -> int:
        before = max(0, self._frame - 2)
        step = self._labels.centre[self._frame, index] - self._labels.centre[before, index]
        if abs(step).max() < STILL_PX:
            return 4
        axis = int(abs(step[1]) > abs(step[0]))
        return 2 * axis + int(step[axis] > 0)


def option(letter: str, right: bool) -> Targets:
    """The targets at an option of a question."""
    return _targets({"right": int(right), "letter": "ABCD".index(letter)})


def _targets(found: Mapping[str, int]) -> Targets:
    return np.array([found.get(name, IGNORED) for name in HEADS], np.int64)
