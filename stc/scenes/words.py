"""What scenes hold and what is asked of them, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SIDE = 112
PATCH = 8
CELLS = SIDE // PATCH
FPS = 2.0

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 45),
    "green": (45, 175, 60),
    "blue": (45, 85, 230),
    "yellow": (242, 215, 45),
    "purple": (160, 55, 205),
    "white": (238, 238, 238),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "star")
DIGITS: tuple[str, ...] = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
KINDS: tuple[str, ...] = (*SHAPES, "person", "digit", "dot")
LETTERS = ("A", "B", "C", "D")
THIRDS = ("left", "middle", "right")
WAYS = ("left", "right", "up", "down")
NUMBERS = DIGITS[:4]
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Thing:
    """One thing of a scene. Persons and digits have no colour, only digits a digit (0..9)."""

    kind: str
    colour: str | None
    digit: int | None = None


@dataclass(frozen=True)
class Question:
    """Asked when frames 0..frame have been seen.

    `text` holds the options, if there are any; `answer` is then the letter of one of them.
    """

    family: str
    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    frame: int


@dataclass(frozen=True)
class Kind:
    """A kind of question: its wordings, with fields in braces, and the answers there are."""

    family: str
    wordings: tuple[str, ...]
    answers: tuple[str, ...]


_COLOURS = tuple(COLOURS)
_WHO = (*SHAPES, "person")

QUESTIONS: dict[str, Kind] = {
    "colour": Kind(
        "now", ("What colour is the {shape}?", "Which colour does the {shape} have?"), _COLOURS
    ),
    "shape": Kind("now", ("Which shape is {colour}?", "What shape is {colour}?"), SHAPES),
    "where": Kind("now", ("Where is the {shape}?",), THIRDS),
    "how many": Kind(
        "now", ("How many shapes are there?", "How many shapes can you see now?"), NUMBERS
    ),
    "way": Kind("now", ("Which way does the {who} move?",), (*WAYS, "still")),
    "moving": Kind("now", ("Is anything moving?", "Does anything move now?"), YES_NO),
    "person": Kind("now", ("Is there a person?", "Can you see a person now?"), YES_NO),
    "person where": Kind("now", ("Where is the person?",), THIRDS),
    "what there": Kind("now", ("What is {place}?",), (*_WHO, "digit")),
    "first shape": Kind("backward", ("Which shape came first?",), SHAPES),
    "first colour": Kind("backward", ("Which colour came first?",), _COLOURS),
    "gone colour": Kind("backward", ("What colour was the shape that left?",), _COLOURS),
    "gone shape": Kind("backward", ("Which shape left?",), SHAPES),
    "was there": Kind(
        "backward", ("Was there a {shape}?", "Did a {shape} come at any time?"), YES_NO
    ),
    "how many came": Kind("backward", ("How many shapes came in all?",), NUMBERS),
    "way it left": Kind("backward", ("Which way did the {who} leave?",), WAYS),
    "anything": Kind("backward", ("Did anything come?",), YES_NO),
    "appeared": Kind("alert", ("Has a {colour} {shape} appeared yet?",), YES_NO),
    "person yet": Kind("alert", ("Has a person appeared yet?",), YES_NO),
    "left yet": Kind("alert", ("Has anything left yet?",), YES_NO),
    "dot colour": Kind("fine", ("What colour is the dot?",), _COLOURS),
    "dot where": Kind("fine", ("Where is the dot?",), THIRDS),
    "dot": Kind("fine", ("Was there a dot?", "Did a dot come at any time?"), YES_NO),
    "digit": Kind("fine", ("Which digit was there?", "Which digit passed?"), DIGITS),
}
"""Every kind of question by name."""

PLACES = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def stems() -> Iterator[str]:
    """Every question there can be, without options."""
    for kind in QUESTIONS.values():
        for wording in kind.wordings:
            yield from _filled(wording)


def _filled(wording: str) -> Iterator[str]:
    fields = {"shape": SHAPES, "colour": _COLOURS, "who": _WHO, "place": tuple(PLACES.values())}
    here = next((name for name in fields if "{" + name + "}" in wording), None)
    if here is None:
        yield wording
        return
    for word in fields[here]:
        yield from _filled(wording.replace("{" + here + "}", word))


def with_options(stem: str, options: tuple[str, ...]) -> str:
    """The question with its options: `Where is it? A. left B. right`."""
    listed = (f"{letter}. {word}" for letter, word in zip(LETTERS, options, strict=False))
    return " ".join((stem, *listed))


def words() -> tuple[str, ...]:
    """Every word of questions and answers, each once, sorted; marks are words of their own."""
    out = {"?", ".", *LETTERS}
    for kind in QUESTIONS.values():
        out.update(kind.answers)
    for stem in stems():
        out.update(stem.removesuffix("?").split())
    return tuple(sorted(out))
