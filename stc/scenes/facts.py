"""What can be said of a scene's things at a frame, and what is too unclear to be asked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stc.scenes.labels import Labels
from stc.scenes.stage.camera import Camera
from stc.scenes.words import SHAPES, SIDE, THIRDS, Thing

SHOWN = 0.6
"""Share of a thing that must be seen for it to be there."""
HIDDEN = 0.05
"""Share below which it is not there; what lies between is not asked about."""
BORDER_PX = 5
STEP_PX = 3
"""What moves goes at least this far in a frame, twice in a row."""


class Facts:
    """Of one scene; frames and things are numbers, `frame` is the last one seen."""

    def __init__(self, labels: Labels, camera: Camera) -> None:
        self.labels, self.camera = labels, camera
        self.things: tuple[Thing, ...] = labels.things
        self.numbers = range(len(self.things))
        self.frame_count = len(labels.shown)
        self.clear = labels.shown >= SHOWN
        self._times_clear = np.cumsum(self.clear, axis=0)
        self._most = np.maximum.accumulate(labels.shown, axis=0)
        self._steady = labels.centre + camera.shift[:, None].astype(np.float32)
        self.shapes = [n for n in self.numbers if self.things[n].kind in SHAPES]
        self.dots = [n for n in self.numbers if self.things[n].kind == "dot"]

    def visible(self, frame: int, number: int) -> bool:
        return bool(self.clear[frame, number])

    def absent(self, frame: int, number: int) -> bool:
        return bool(self.labels.shown[frame, number] < HIDDEN)

    def seen(self, frame: int, number: int) -> bool:
        """Clearly there in at least two frames so far."""
        return bool(self._times_clear[frame, number] >= 2)

    def unseen(self, frame: int, number: int) -> bool:
        return bool(self._most[frame, number] < HIDDEN)

    def came(self, frame: int, number: int) -> int | None:
        """The first frame in which it was clearly there, None if there was none yet."""
        if not self._times_clear[frame, number]:
            return None
        return int(np.argmax(self.clear[:, number]))

    def first_trace(self, number: int) -> int:
        """The first frame in which anything of it was there; the frame count if none."""
        there = self.labels.shown[:, number] >= HIDDEN
        return int(np.argmax(there)) if there.any() else self.frame_count

    def alone(self, number: int, of: str) -> bool:
        """Whether no other thing of the scene has this one's kind or colour."""
        every = [getattr(thing, of) for thing in self.things]
        return every.count(every[number]) == 1

    def outside(self, frame: int, number: int) -> bool:
        x, y = (float(at) for at in self.labels.centre[frame, number])
        return not (0 <= x < SIDE and 0 <= y < SIDE)

    def left(self, frame: int, number: int) -> bool:
        """Whether it was there and has gone out of the picture."""
        gone = self.absent(frame, number) and self.outside(frame, number)
        return gone and self.seen(frame, number)

    def stayed(self, frame: int, number: int) -> bool:
        """Whether it clearly has not left: visible, covered inside the picture, or not yet come."""
        if self.unseen(frame, number) or self.visible(frame, number):
            return True
        covered = self.absent(frame, number) and not self.outside(frame, number)
        return covered and not self.dots

    def third(self, frame: int, number: int) -> str | None:
        """Of the picture's width, None near a border between thirds."""
        x = float(self.labels.centre[frame, number, 0])
        borders = (SIDE / 3, 2 * SIDE / 3)
        if min(abs(x - border) for border in borders) < BORDER_PX:
            return None
        return THIRDS[sum(x > border for border in borders)]

    def steps(self, frame: int, number: int) -> npt.NDArray[np.float32]:
        """The last two moves, x and y px, [2, 2], without the camera's shaking."""
        return np.diff(self._steady[frame - 2 : frame + 1, number], axis=0)

    def way(self, frame: int, number: int) -> str | None:
        """left, right, up, down or still, None if that is not clear; the camera must stand."""
        if frame < 2 or not self.clear[frame - 1 : frame + 1, number].all():
            return None
        steps = self.steps(frame, number)
        if not steps.any():
            return "still" if self.visible(frame - 2, number) else None
        ways = {way_of(float(x), float(y)) for x, y in steps}
        return ways.pop() if len(ways) == 1 else None

    def unchanged(self, frame: int, number: int) -> bool:
        """Whether it was the same in the last three frames."""
        shown = self.labels.shown[frame - 2 : frame + 1, number]
        if (shown < HIDDEN).all():
            return True
        return bool(not self.steps(frame, number).any() and (shown >= SHOWN).all())

    def exit_way(self, frame: int, number: int) -> str | None:
        """The side by which a thing that left went out."""
        x, y = (float(at) for at in self.labels.centre[frame, number])
        sides = {"left": x < 0, "right": x >= SIDE, "up": y < 0, "down": y >= SIDE}
        out = [side for side, is_out in sides.items() if is_out]
        return out[0] if len(out) == 1 else None


def way_of(x: float, y: float) -> str | None:
    """The main direction of a move in px (y down), None if it is small or oblique."""
    far, near = max(abs(x), abs(y)), min(abs(x), abs(y))
    if far < STEP_PX or near * 3 > far:
        return None
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "up" if y < 0 else "down"
