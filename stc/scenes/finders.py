"""What can be asked at a frame and what is right, kind by kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stc.scenes.facts import Facts
from stc.scenes.words import COLOURS, DIGITS, NUMBERS, PLACES, SHAPES


@dataclass(frozen=True)
class Found:
    """A question that can be asked: what fills its wording, and the right word."""

    answer: str
    fields: tuple[tuple[str, str], ...] = ()


Finder = Callable[[Facts, int], list[Found]]


def _of(facts: Facts, number: int) -> tuple[str, str]:
    thing = facts.things[number]
    return thing.kind, thing.colour or ""


def _colour(facts: Facts, frame: int) -> list[Found]:
    kinds = [n for n in facts.shapes if facts.visible(frame, n) and facts.alone(n, "kind")]
    return [Found(_of(facts, n)[1], (("shape", _of(facts, n)[0]),)) for n in kinds]


def _shape(facts: Facts, frame: int) -> list[Found]:
    found = [n for n in facts.shapes if facts.visible(frame, n) and facts.alone(n, "colour")]
    return [Found(_of(facts, n)[0], (("colour", _of(facts, n)[1]),)) for n in found]


def _where(facts: Facts, frame: int) -> list[Found]:
    out = []
    for n in facts.shapes:
        third = facts.third(frame, n)
        if third and facts.visible(frame, n) and facts.alone(n, "kind"):
            out.append(Found(third, (("shape", facts.things[n].kind),)))
    return out


def _how_many(facts: Facts, frame: int) -> list[Found]:
    unclear = [n for n in facts.shapes if not facts.visible(frame, n)]
    if not all(facts.absent(frame, n) for n in (*unclear, *facts.dots)):
        return []
    return [Found(NUMBERS[len(facts.shapes) - len(unclear)])]


def _who(facts: Facts) -> list[int]:
    """Shapes and persons that are the only ones of their kind."""
    kinds = (*SHAPES, "person")
    return [n for n in facts.numbers if facts.things[n].kind in kinds and facts.alone(n, "kind")]


def _way(facts: Facts, frame: int) -> list[Found]:
    if not facts.camera.fixed:
        return []
    ways = {n: facts.way(frame, n) for n in _who(facts)}
    return [Found(way, (("who", facts.things[n].kind),)) for n, way in ways.items() if way]


def _moving(facts: Facts, frame: int) -> list[Found]:
    if not facts.camera.still or frame < 2:
        return []
    if any(facts.way(frame, n) not in (None, "still") for n in facts.numbers):
        return [Found("yes")]
    return [Found("no")] if all(facts.unchanged(frame, n) for n in facts.numbers) else []


def _persons(facts: Facts) -> list[int]:
    return [n for n in facts.numbers if facts.things[n].kind == "person"]


def _person(facts: Facts, frame: int) -> list[Found]:
    if any(facts.visible(frame, n) for n in _persons(facts)):
        return [Found("yes")]
    return [Found("no")] if all(facts.absent(frame, n) for n in _persons(facts)) else []


def _person_where(facts: Facts, frame: int) -> list[Found]:
    visible = [n for n in _persons(facts) if facts.visible(frame, n)]
    thirds = [facts.third(frame, n) for n in visible]
    return [Found(third) for third in thirds if third and len(thirds) == 1]


def _what_there(facts: Facts, frame: int) -> list[Found]:
    around = [n for n in facts.numbers if not facts.absent(frame, n)]
    thirds = [facts.third(frame, n) for n in around]
    if None in thirds or any(facts.things[n].kind == "dot" for n in around):
        return []
    out = []
    for n, third in zip(around, thirds, strict=True):
        if third and thirds.count(third) == 1 and facts.visible(frame, n):
            out.append(Found(facts.things[n].kind, (("place", PLACES[third]),)))
    return out


def _first(facts: Facts, frame: int, among: list[int]) -> int | None:
    """Which came first, by more than a frame, of at least two that came."""
    came = {n: facts.came(frame, n) for n in among}
    times = sorted((time, n) for n, time in came.items() if time is not None)
    if len(times) < 2 or not facts.seen(frame, times[0][1]):
        return None
    time, first = times[0]
    others = (n for n in among if n != first)
    return first if all(facts.first_trace(n) > time + 1 for n in others) else None


def _first_shape(facts: Facts, frame: int) -> list[Found]:
    first = _first(facts, frame, facts.shapes)
    alone = first is not None and facts.alone(first, "kind")
    return [Found(facts.things[first].kind)] if first is not None and alone else []


def _first_colour(facts: Facts, frame: int) -> list[Found]:
    if any(facts.things[n].colour is None for n in facts.numbers):
        return []
    first = _first(facts, frame, [*facts.shapes, *facts.dots])
    alone = first is not None and facts.alone(first, "colour")
    return [Found(_of(facts, first)[1])] if first is not None and alone else []


def _only_gone(facts: Facts, frame: int) -> int | None:
    """The one shape that left, if no other may have."""
    if facts.camera.cut:
        return None
    gone = [n for n in facts.shapes if facts.left(frame, n)]
    rest = (n for n in facts.shapes if n not in gone)
    return gone[0] if len(gone) == 1 and all(facts.stayed(frame, n) for n in rest) else None


def _gone_colour(facts: Facts, frame: int) -> list[Found]:
    gone = _only_gone(facts, frame)
    return [] if gone is None else [Found(_of(facts, gone)[1])]


def _gone_shape(facts: Facts, frame: int) -> list[Found]:
    gone = _only_gone(facts, frame)
    return [] if gone is None else [Found(_of(facts, gone)[0])]


def _was_there(facts: Facts, frame: int) -> list[Found]:
    out = []
    for shape in SHAPES:
        like = [n for n in facts.shapes if facts.things[n].kind == shape]
        if shape == "circle":
            like += facts.dots
        if any(facts.seen(frame, n) for n in like if n not in facts.dots):
            out.append(Found("yes", (("shape", shape),)))
        elif all(facts.unseen(frame, n) for n in like):
            out.append(Found("no", (("shape", shape),)))
    return out


def _how_many_came(facts: Facts, frame: int) -> list[Found]:
    seen = [n for n in facts.shapes if facts.seen(frame, n)]
    rest = [n for n in (*facts.shapes, *facts.dots) if n not in seen]
    return [Found(NUMBERS[len(seen)])] if all(facts.unseen(frame, n) for n in rest) else []


def _way_it_left(facts: Facts, frame: int) -> list[Found]:
    if not facts.camera.still:
        return []
    gone = [n for n in _who(facts) if facts.left(frame, n)]
    ways = {n: facts.exit_way(frame, n) for n in gone}
    return [Found(way, (("who", facts.things[n].kind),)) for n, way in ways.items() if way]


def _yes_no(facts: Facts, frame: int, among: list[int]) -> list[Found]:
    """Whether any of these things was there so far."""
    if any(facts.seen(frame, n) for n in among):
        return [Found("yes")]
    return [Found("no")] if all(facts.unseen(frame, n) for n in among) else []


def _anything(facts: Facts, frame: int) -> list[Found]:
    return _yes_no(facts, frame, list(facts.numbers))


def _appeared(facts: Facts, frame: int) -> list[Found]:
    """Not yet: what is still to come, or shares a colour or a shape with what came."""
    came = [_of(facts, n) for n in facts.shapes if facts.seen(frame, n)]
    maybe = [_of(facts, n) for n in facts.shapes if not facts.unseen(frame, n)]
    dots = [("circle", _of(facts, n)[1]) for n in facts.dots]
    coming = [_of(facts, n) for n in facts.shapes if facts.unseen(frame, n)]
    kinds, colours = {kind for kind, _ in came}, {colour for _, colour in came}
    out = []
    for shape in SHAPES:
        for colour in COLOURS:
            pair, fields = (shape, colour), (("shape", shape), ("colour", colour))
            near = not came or shape in kinds or colour in colours or pair in coming
            if pair in came:
                out.append(Found("yes", fields))
            elif near and pair not in maybe and pair not in dots:
                out.append(Found("no", fields))
    return out


def _person_yet(facts: Facts, frame: int) -> list[Found]:
    return _yes_no(facts, frame, _persons(facts))


def _left_yet(facts: Facts, frame: int) -> list[Found]:
    if facts.camera.cut:
        return []
    if any(facts.left(frame, n) for n in facts.numbers):
        return [Found("yes")]
    return [Found("no")] if all(facts.stayed(frame, n) for n in facts.numbers) else []


def _dot_colour(facts: Facts, frame: int) -> list[Found]:
    return [Found(_of(facts, n)[1]) for n in facts.dots if facts.visible(frame, n)]


def _dot_where(facts: Facts, frame: int) -> list[Found]:
    thirds = [facts.third(frame, n) for n in facts.dots if facts.visible(frame, n)]
    return [Found(third) for third in thirds if third]


def _dot(facts: Facts, frame: int) -> list[Found]:
    return _yes_no(facts, frame, facts.dots)


def _digit(facts: Facts, frame: int) -> list[Found]:
    digits = ((n, facts.things[n].digit) for n in facts.numbers)
    return [
        Found(DIGITS[digit]) for n, digit in digits if digit is not None and facts.seen(frame, n)
    ]


FINDERS: dict[str, Finder] = {
    "colour": _colour,
    "shape": _shape,
    "where": _where,
    "how many": _how_many,
    "way": _way,
    "moving": _moving,
    "person": _person,
    "person where": _person_where,
    "what there": _what_there,
    "first shape": _first_shape,
    "first colour": _first_colour,
    "gone colour": _gone_colour,
    "gone shape": _gone_shape,
    "was there": _was_there,
    "how many came": _how_many_came,
    "way it left": _way_it_left,
    "anything": _anything,
    "appeared": _appeared,
    "person yet": _person_yet,
    "left yet": _left_yet,
    "dot colour": _dot_colour,
    "dot where": _dot_where,
    "dot": _dot,
    "digit": _digit,
}
"""For each kind of question, what of it can be asked at a frame."""
