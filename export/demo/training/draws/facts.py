"""What the words of a question are about, and what each token of a frame could tell: targets of
heads that are thrown away after training.

A model that knows what is in a scene still has to learn that "circle" in a question means the
circle that it saw. Heads that say so at the word itself teach it in a few hundred steps; without
them nothing was learnt in ten times as many. Heads at the frames' tokens say what no frame shows
alone: which way a thing moves, how many came before it, how many are gone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stc.scenes.labels import Labels
from stc.scenes.words import CELLS, COLOURS, DIGITS, KINDS, SHAPES, SIDE

HEADS: Mapping[str, int] = {
    "colour": len(COLOURS),
    "kind": len(KINDS),
    "digit": len(DIGITS),
    "seen": 2,
    "visible": 2,
    "third": 3,
    "direction": 5,
    "exit": 4,
    "rank": 4,
    "right": 2,
    "letter": 4,
    "now": 4,
    "ever": 4,
    "gone": 3,
}
"""Heads at a question's text tokens by name, and between how many values each decides."""
FRAME_HEADS: Mapping[str, int] = {"direction": 5, "rank": 4, "now": 4, "ever": 4, "gone": 3}
"""Heads at the tokens of frames: the first two where a thing is, the others at a frame's last."""
LATE = ("right", "now", "ever", "gone")
"""Those that come last: they compare what was found, or count."""
IGNORED = -100
VISIBLE, HIDDEN = 0.6, 0.05
"""Shares of a thing: from the first on it is in sight, below the second it is not."""
STILL_PX = 1.0
"""Movement over two frames that is none."""
STRIDE_PX = 16.0
"""Movement over two frames that counts as 1."""

Targets = NDArray[np.int64]


class Facts:
    """What a watcher knows of `labels` after frame `frame`."""

    def __init__(self, labels: Labels, frame: int) -> None:
        self._labels, self._frame = labels, frame
        shown: NDArray[np.bool_] = labels.shown[: frame + 1] >= VISIBLE
        self._seen: NDArray[np.bool_] = np.logical_or.reduce(shown, axis=0)
        self._visible: NDArray[np.bool_] = shown[-1]
        centre = labels.centre[frame]
        self._sides = np.stack([centre < 0, centre >= SIDE], 2).reshape(-1, 4)
        self._gone = self._seen & (labels.shown[frame] < HIDDEN) & self._sides.any(1)
        self._shapes = np.array([thing.kind in SHAPES for thing in labels.things], bool)
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
        return _targets(self._counts())

    def shown(self) -> tuple[Targets, NDArray[np.float32]]:
        """What each token of the frame could tell, [49, len(FRAME_HEADS)], pooled as the model
        pools patches: a token is of the thing that owns most of its patches. And how far that went
        in two frames, [49, 2] of STRIDE_PX, right and down; NaN where it was not in sight then."""
        owner = self._labels.owner[self._frame].reshape(CELLS // 2, 2, CELLS // 2, 2)
        owner = owner.transpose(0, 2, 1, 3).reshape(-1, 4, 1)
        found = np.full((len(owner), len(FRAME_HEADS)), IGNORED, np.int64)
        moved = np.full((len(owner), 2), np.nan, np.float32)
        at = list(FRAME_HEADS).index
        parts = (owner == np.arange(len(self._labels.things))).sum(1)
        for index in range(parts.shape[1]):
            mine = (parts[:, index] > 0) & (parts.argmax(1) == index)
            found[mine, at("rank")] = self._rank_of(index)
            if self._there_before(index):
                found[mine, at("direction")] = self._direction(index)
                moved[mine] = self._step(index) / STRIDE_PX
        for name, count in self._counts().items():
            found[:, at(name)] = count
        return found, moved

    def _there_before(self, index: int) -> bool:
        """Whether it was in sight, if in part, two frames ago."""
        if self._frame < 2:
            return False
        return bool(self._labels.shown[self._frame - 2, index] >= VISIBLE / 2)

    def _step(self, index: int) -> NDArray[np.float32]:
        """How far it went in two frames, px right and down."""
        centre = self._labels.centre[:, index]
        step: NDArray[np.float32] = centre[self._frame] - centre[self._frame - 2]
        return step

    def _counts(self) -> dict[str, int]:
        """How many shapes are in sight and were so far, and how many things have left."""
        counted = {
            "now": self._visible & self._shapes,
            "ever": self._seen & self._shapes,
            "gone": self._gone,
        }
        return {name: min(HEADS[name] - 1, int(one.sum())) for name, one in counted.items()}

    def _rank_of(self, index: int) -> int:
        return min(HEADS["rank"] - 1, int(self._rank[index]))

    def _of(self, index: int) -> dict[str, int]:
        thing = self._labels.things[index]
        found = {
            "kind": KINDS.index(thing.kind),
            "visible": int(self._visible[index]),
            "rank": self._rank_of(index),
        }
        if thing.colour is not None:
            found["colour"] = list(COLOURS).index(thing.colour)
        if thing.digit is not None:
            found["digit"] = thing.digit
        if self._visible[index]:
            centre = self._labels.centre[self._frame, index]
            found["third"] = int(np.clip(3 * centre[0] / SIDE, 0, 2))
            if self._there_before(index):
                found["direction"] = self._direction(index)
        if self._gone[index] and self._sides[index].sum() == 1:
            found["exit"] = int(self._sides[index].argmax())
        return found

    def _direction(self, index: int) -> int:
        step = self._step(index)
        if abs(step).max() < STILL_PX:
            return 4
        axis = int(abs(step[1]) > abs(step[0]))
        return 2 * axis + int(step[axis] > 0)


def option(letter: str, right: bool) -> Targets:
    """The targets at an option of a question."""
    return _targets({"right": int(right), "letter": "ABCD".index(letter)})


def _targets(found: Mapping[str, int]) -> Targets:
    return np.array([found.get(name, IGNORED) for name in HEADS], np.int64)
