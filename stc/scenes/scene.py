"""One scene: a short video stream with its labels and the questions about it."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from stc.scenes import store
from stc.scenes.chance import generator
from stc.scenes.labels import Labels, centres, make_labels, occluder_boxes
from stc.scenes.questions import ask
from stc.scenes.stage.backgrounds import background
from stc.scenes.stage.bodies import Pixels, drawn
from stc.scenes.stage.camera import REACH
from stc.scenes.stage.plan import Plan, make_plan
from stc.scenes.store import Split
from stc.scenes.words import SIDE, Question

_NOISE_ROOM = 40


class Scene:
    """A scene is its split and seed; everything else follows, the same on every machine."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split: Split = split
        self.seed = seed

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.split, self.seed)

    @cached_property
    def labels(self) -> Labels:
        """What is right, without anything being drawn."""
        return make_labels(self.plan)

    @property
    def frame_count(self) -> int:
        return self.plan.frame_count

    @property
    def fixed_camera(self) -> bool:
        """Whether the camera stands: no pan, zoom, shake or cut."""
        return self.plan.camera.fixed

    def frames(self) -> Pixels:
        """All frames, uint8 [F, 112, 112, 3] RGB."""
        return np.stack([self.render(frame) for frame in range(self.frame_count)])

    def render(self, frame: int) -> Pixels:
        """One frame, uint8 [112, 112, 3] RGB."""
        return self.render_without((), frame)

    def render_without(self, hidden: tuple[int, ...], frame: int) -> Pixels:
        """One frame without the things of these numbers; all else is as in `render`."""
        plan = self.plan
        picture = self._behind(frame)
        for number in range(len(plan.things)):
            if plan.there[frame, number] and number not in hidden:
                zoom = plan.camera.zoom[frame]
                x, y = self._centres[frame, number]
                _lay(picture, self._picture_of(number, zoom), int(x), int(y))
        if plan.occluder is not None and self._boxes is not None:
            left, top, right, bottom = np.clip(self._boxes[frame], 0, SIDE)
            picture[top:bottom, left:right] = plan.occluder.ink
        return self._as_sensed(picture, frame)

    def questions(self, random: np.random.Generator, count: int) -> list[Question]:
        """Up to `count` questions at any frames, kinds and answers as even as the scene allows."""
        return ask(self.labels, self.plan.camera, random, count)

    @cached_property
    def _centres(self) -> npt.NDArray[np.int64]:
        return centres(self.plan).astype(np.int64)

    @cached_property
    def _boxes(self) -> npt.NDArray[np.int64] | None:
        return occluder_boxes(self.plan)

    @cached_property
    def _pictures(self) -> dict[tuple[int, float], Pixels]:
        return {}

    @cached_property
    def _backgrounds(self) -> dict[int, Pixels]:
        return {}

    def _picture_of(self, number: int, zoom: float) -> Pixels:
        key = (number, zoom)
        if key not in self._pictures:
            self._pictures[key] = drawn(self.plan.looks[number], zoom)
        return self._pictures[key]

    def _behind(self, frame: int) -> Pixels:
        camera = self.plan.camera
        part = int(camera.cut > 0 and frame >= camera.cut)
        if part not in self._backgrounds:
            light = any(thing.kind == "person" for thing in self.plan.things)
            self._backgrounds[part] = background(self.split, self.seed, part, light)
        whole = self._backgrounds[part]
        across, down = (int(step) for step in camera.shift[frame])
        zoom = np.float32(camera.zoom[frame])
        if zoom == 1:
            top, left = REACH + down, REACH + across
            return np.array(whole[top : top + SIDE, left : left + SIDE])
        steps = np.arange(SIDE, dtype=np.float32) + np.float32(0.5 - SIDE / 2)
        at = (steps / zoom + np.float32(SIDE / 2 + REACH)).astype(np.intp)
        return np.asarray(whole[at][:, at])

    def _as_sensed(self, picture: Pixels, frame: int) -> Pixels:
        gain, noise = self.plan.camera.gain[frame], self.plan.noise
        if gain == 256 and noise == 0:
            return picture
        out = picture.astype(np.int32)
        if gain != 256:
            out *= gain
            out >>= 8
        if noise:
            random = generator(store.SPLITS.index(self.split), self.seed, 3, frame)
            top, left = (int(step) for step in random.integers(0, _NOISE_ROOM, 2))
            out += _noise(noise)[top : top + SIDE, left : left + SIDE]
        np.clip(out, 0, 255, out=out)
        return out.astype(np.uint8)


def _lay(picture: Pixels, thing: Pixels, x: int, y: int) -> None:
    """Draws a thing into a picture with its middle at (x, y)."""
    half = thing.shape[0] // 2
    top, left = max(0, y - half), max(0, x - half)
    bottom, right = min(SIDE, y + half), min(SIDE, x + half)
    if bottom <= top or right <= left:
        return
    part = thing[top - y + half : bottom - y + half, left - x + half : right - x + half]
    part = part.astype(np.int32)
    under = picture[top:bottom, left:right]
    alpha = part[..., 3:]
    under[:] = (under * (255 - alpha) + part[..., :3] * alpha) // 255


@cache
def _noise(strength: int) -> npt.NDArray[np.int32]:
    """A sensor's noise: sums of three uniform levels, about `strength` levels of deviation."""
    random = generator(77, strength)
    size = SIDE + _NOISE_ROOM
    levels = random.integers(-100, 101, (3, size, size, 3)).astype(np.int32)
    return np.asarray((levels.sum(0) * strength + 50) // 100)


def make_scene(split: Split, seed: int) -> Scene:
    """The scene of this seed, a non-negative integer, in `train`, `validation` or `test`."""
    return Scene(split, seed)
