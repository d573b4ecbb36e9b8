"""What happens in a scene: its things, where they go, what the camera does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stc.scenes import store
from stc.scenes.chance import chance, generator, pick, shuffled, whole
from stc.scenes.stage.bodies import Ink, Look
from stc.scenes.stage.camera import Camera, make_camera
from stc.scenes.stage.paths import path_of, present_of
from stc.scenes.store import Split
from stc.scenes.words import COLOURS, SHAPES, SIDE, Thing

_TURNS = ((1.0, 0.0), (1.0, 0.0), (60 / 61, 11 / 61), (40 / 41, 9 / 41), (24 / 25, 7 / 25))


@dataclass(frozen=True)
class Occluder:
    """A bar or box before everything: left, top, right, bottom in px."""

    box: tuple[int, int, int, int]
    ink: Ink


@dataclass(frozen=True)
class Plan:
    """`track` [F, K, 2]: centres in px before the camera moves; `there` [F, K]: who exists."""

    frame_count: int
    things: tuple[Thing, ...]
    looks: tuple[Look, ...]
    track: npt.NDArray[np.int64]
    there: npt.NDArray[np.bool_]
    camera: Camera
    occluder: Occluder | None
    noise: int


def make_plan(split: Split, seed: int) -> Plan:
    """The same for the same split and seed, everywhere."""
    random = generator(store.SPLITS.index(split), seed, 1)
    still = chance(random, 0.24)
    frame_count = _length(random, still)
    camera = make_camera(random, frame_count, still)
    count = _count(random)
    things = _things(random, count)
    things = _with_dot(random, things, 0.42 if still else 0.09)
    looks = tuple(_look(random, split, thing) for thing in things)
    track, there = _tracks(random, looks, camera, still)
    occluder = _occluder(random) if chance(random, 0.0 if still else 0.28) else None
    noise = pick(random, (0, 1, 2, 2, 3, 4))
    return Plan(frame_count, things, looks, track, there, camera, occluder, noise)


def _length(random: np.random.Generator, still: bool) -> int:
    if still:
        return whole(random, 11, 24)
    return min(whole(random, 8, 24), whole(random, 8, 24)) + chance(random, 0.5)


def _count(random: np.random.Generator) -> int:
    at = random.random()
    return 0 if at < 0.1 else 1 if at < 0.36 else 2 if at < 0.7 else 3


def _things(random: np.random.Generator, count: int) -> tuple[Thing, ...]:
    again = chance(random, 0.12)
    colours, shapes = shuffled(random, tuple(COLOURS)), shuffled(random, SHAPES)
    if again:
        colours, shapes = _repeated(random, colours), _repeated(random, shapes)
    out = [Thing(shape, colour) for shape, colour in zip(shapes, colours, strict=False)][:count]
    at = random.random()
    if out and at < 0.16:
        out[whole(random, 0, count - 1)] = Thing("person", None)
    elif out and at < 0.32:
        out[whole(random, 0, count - 1)] = Thing("digit", None, whole(random, 0, 9))
    return tuple(out)


def _repeated(random: np.random.Generator, names: list[str]) -> list[str]:
    """Half of the time the first name comes again."""
    return [names[0], names[0], *names[1:]] if chance(random, 0.5) else names


def _with_dot(
    random: np.random.Generator, things: tuple[Thing, ...], share: float
) -> tuple[Thing, ...]:
    if not chance(random, share):
        return things
    taken = {thing.colour for thing in things}
    return (*things, Thing("dot", pick(random, [name for name in COLOURS if name not in taken])))


def _look(random: np.random.Generator, split: Split, thing: Thing) -> Look:
    light = chance(random, 0.5)
    if thing.kind == "person":
        image = pick(random, list(store.people(split)))
        image = image[:, ::-1] if chance(random, 0.5) else image
        high = min(whole(random, 15, 40), whole(random, 22, 44))
        return Look("person", high, (0, 0, 0), (0, 0, 0), image=image)
    if thing.digit is not None:
        image = pick(random, list(store.digits(split)[thing.digit]))
        inks = ((235, 235, 230), (25, 25, 30))
        return Look("digit", whole(random, 22, 32), inks[light], inks[not light], image=image)
    assert thing.colour is not None
    ink = _jittered(random, COLOURS[thing.colour])
    rim = _lighter(ink) if light and thing.colour != "white" else _darker(ink)
    if thing.kind == "dot":
        rim = _darker(ink) if thing.colour in ("white", "yellow") else _lighter(ink)
        return Look("dot", whole(random, 6, 8), ink, rim)
    smallest = 20 if thing.kind in ("star", "cross") else 16
    return Look(thing.kind, whole(random, smallest, 34), ink, rim, _turn(random, thing.kind))


def _jittered(random: np.random.Generator, ink: Ink) -> Ink:
    red, green, blue = (min(255, max(0, level + whole(random, -14, 14))) for level in ink)
    return red, green, blue


def _darker(ink: Ink) -> Ink:
    return ink[0] // 4, ink[1] // 4, ink[2] // 4


def _lighter(ink: Ink) -> Ink:
    return 255 - (255 - ink[0]) // 3, 255 - (255 - ink[1]) // 3, 255 - (255 - ink[2]) // 3


def _turn(random: np.random.Generator, kind: str) -> tuple[float, float]:
    if kind == "circle":
        return 1.0, 0.0
    cosine, sine = pick(random, _TURNS)
    return cosine, sine if chance(random, 0.5) else -sine


def _occluder(random: np.random.Generator) -> Occluder:
    grey = whole(random, 35, 150)
    ink = (grey + whole(random, 0, 25), grey + whole(random, 0, 12), grey)
    if chance(random, 0.6):
        wide, left = whole(random, 18, 38), whole(random, 8, 74)
        return Occluder((left, -40, left + wide, SIDE + 40), ink)
    wide, high = whole(random, 30, 52), whole(random, 30, 60)
    left, top = whole(random, 4, SIDE - 4 - wide), whole(random, 4, SIDE - 4 - high)
    return Occluder((left, top, left + wide, top + high), ink)


def _tracks(
    random: np.random.Generator, looks: tuple[Look, ...], camera: Camera, still: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    frame_count = len(camera.zoom)
    track = np.zeros((frame_count, len(looks), 2), np.int64)
    there = np.ones((frame_count, len(looks)), np.bool_)
    lanes = shuffled(random, range(max(1, sum(look.kind != "dot" for look in looks))))
    for number, look in enumerate(looks):
        lane = (lanes[number % len(lanes)], len(lanes))
        others = track[-1, :number]
        track[:, number] = path_of(random, look, camera, still, lane, others)
        there[:, number] = present_of(random, look, camera, frame_count, still)
    return track, there
