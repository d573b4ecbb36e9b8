"""What can be said of a scene's things at a frame, and what is too unclear to be asked."""

from __future__ import annotations

import numpy as np

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
        self.camera = camera
        self.things: tuple[Thing, ...] = labels.things
        self.numbers = range(len(self.things))
        self.frame_count = len(labels.shown)
        clear = labels.shown >= SHOWN
        steady = labels.centre + camera.shift[:, None].astype(np.float32)
        # Lists, since single numbers are looked up by the thousand.
        self._clear: list[list[bool]] = clear.tolist()
        self._hidden: list[list[bool]] = (labels.shown < HIDDEN).tolist()
        self._times_clear: list[list[int]] = np.cumsum(clear, axis=0).tolist()
        self._unseen: list[list[bool]] = np.logical_and.accumulate(
            labels.shown < HIDDEN, axis=0
        ).tolist()
        self._centre: list[list[list[float]]] = labels.centre.tolist()
        self._steps: list[list[list[float]]] = np.diff(steady, axis=0).tolist()
        self.shapes = [n for n in self.numbers if self.things[n].kind in SHAPES]
        self.dots = [n for n in self.numbers if self.things[n].kind == "dot"]

    def visible(self, frame: int, number: int) -> bool:
        return self._clear[frame][number]

    def absent(self, frame: int, number: int) -> bool:
        return self._hidden[frame][number]

    def seen(self, frame: int, number: int) -> bool:
        """Clearly there in at least two frames so far."""
        return self._times_clear[frame][number] >= 2

    def unseen(self, frame: int, number: int) -> bool:
        return self._unseen[frame][number]

    def came(self, frame: int, number: int) -> int | None:
        """The first frame in which it was clearly there, None if there was none yet."""
        return next((f for f in range(frame + 1) if self._clear[f][number]), None)

    def first_trace(self, number: int) -> int:
        """The first frame in which anything of it was there; the frame count if none."""
        frames = range(self.frame_count)
        return next((f for f in frames if not self._hidden[f][number]), self.frame_count)

    def alone(self, number: int, of: str) -> bool:
        """Whether no other thing of the scene has this one's kind or colour."""
        every = [getattr(thing, of) for thing in self.things]
        return every.count(every[number]) == 1

    def outside(self, frame: int, number: int) -> bool:
        x, y = self._centre[frame][number]
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
        x = self._centre[frame][number][0]
        borders = (SIDE / 3, 2 * SIDE / 3)
        if min(abs(x - border) for border in borders) < BORDER_PX:
            return None
        return THIRDS[sum(x > border for border in borders)]

    def way(self, frame: int, number: int) -> str | None:
        """left, right, up, down or still, None if that is not clear; the camera must stand."""
        if frame < 2 or not (self.visible(frame, number) and self.visible(frame - 1, number)):
            return None
        if self._stood(frame, number):
            return "still" if self.visible(frame - 2, number) else None
        ways = {way_of(*self._steps[f][number]) for f in (frame - 2, frame - 1)}
        return ways.pop() if len(ways) == 1 else None

    def unchanged(self, frame: int, number: int) -> bool:
        """Whether it was the same in the last three frames."""
        frames = (frame - 2, frame - 1, frame)
        if all(self._hidden[f][number] for f in frames):
            return True
        return self._stood(frame, number) and all(self._clear[f][number] for f in frames)

    def _stood(self, frame: int, number: int) -> bool:
        """Whether it did not move in the last two frames, the camera's shaking left out."""
        return not any(any(self._steps[f][number]) for f in (frame - 2, frame - 1))

    def exit_way(self, frame: int, number: int) -> str | None:
        """The side by which a thing that left went out."""
        x, y = self._centre[frame][number]
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
