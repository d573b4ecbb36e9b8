"""Questions about a scene, drawn for training: kinds and answers as even as the scene allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stc.scenes.chance import chance, pick, shuffled, whole
from stc.scenes.facts import Facts
from stc.scenes.finders import FINDERS, Found
from stc.scenes.labels import Labels
from stc.scenes.stage.camera import Camera
from stc.scenes.words import LETTERS, QUESTIONS, Question, with_options

_FRAMES_TRIED = 3
_ROUNDS = 4
_KEPT: dict[tuple[str, str], float] = {
    ("how many", "zero"): 0.4,
    ("how many", "one"): 0.4,
    ("how many", "two"): 0.5,
    ("how many came", "zero"): 0.5,
    ("how many came", "one"): 0.5,
    ("how many came", "two"): 0.6,
    ("way", "still"): 0.2,
    ("moving", "no"): 0.75,
    ("person", "no"): 0.12,
    ("was there", "no"): 0.65,
    ("anything", "yes"): 0.22,
    ("appeared", "no"): 0.65,
    ("person yet", "no"): 0.13,
    ("left yet", "no"): 0.14,
    ("dot", "no"): 0.16,
}
"""How often an answer that most scenes offer is taken, so that all are about as frequent."""
_RARE = {
    "first shape": 3,
    "first colour": 3,
    "gone colour": 3,
    "gone shape": 3,
    "way it left": 3,
    "person where": 3,
    "dot colour": 3,
    "dot where": 3,
    "digit": 3,
    "way": 2,
}
"""How many times in a round kinds are tried that few scenes offer."""


def ask(labels: Labels, camera: Camera, random: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions, none twice."""
    facts = Facts(labels, camera)
    out: dict[Question, None] = {}
    every = [kind for kind in FINDERS for _ in range(_RARE.get(kind, 1))]
    for _ in range(_ROUNDS):
        for kind in shuffled(random, every):
            question = _one(facts, random, kind)
            if question is not None:
                out[question] = None
            if len(out) == count:
                return list(out)
    return list(out)


def _one(facts: Facts, random: np.random.Generator, kind: str) -> Question | None:
    by_answer: dict[str, list[tuple[Found, int]]] = {}
    for _ in range(_FRAMES_TRIED):
        frame = whole(random, 1, facts.frame_count - 1)
        for found in FINDERS[kind](facts, frame):
            by_answer.setdefault(found.answer, []).append((found, frame))
    if not by_answer:
        return None
    answer = pick(random, sorted(by_answer))
    if not chance(random, _KEPT.get((kind, answer), 1.0)):
        return None
    found, frame = pick(random, by_answer[answer])
    if chance(random, 0.5):
        return in_a_word(kind, found, frame, pick(random, QUESTIONS[kind].wordings))
    wording = pick(random, QUESTIONS[kind].wordings)
    most = min(len(LETTERS), len(QUESTIONS[kind].answers))
    number = pick(random, (most, most, whole(random, 2, most)))
    place = whole(random, 0, number - 1)
    return as_choice(
        kind, found, frame, wording, wrong_ones(facts, random, kind, found), place, number
    )


def wrong_ones(facts: Facts, random: np.random.Generator, kind: str, found: Found) -> list[str]:
    """The wrong answers, those first that name other things of the scene."""
    wrong = [word for word in QUESTIONS[kind].answers if word != found.answer]
    near = {word for thing in facts.things for word in (thing.kind, thing.colour)}
    return sorted(shuffled(random, wrong), key=lambda word: word not in near)


def in_a_word(kind: str, found: Found, frame: int, wording: str) -> Question:
    text = wording.format_map(dict(found.fields))
    return Question(QUESTIONS[kind].family, kind, text, found.answer, (), frame)


def as_choice(
    kind: str,
    found: Found,
    frame: int,
    wording: str,
    wrong: Sequence[str],
    place: int,
    number: int,
) -> Question:
    """With `number` options, the right one at `place`."""
    stem = wording.format_map(dict(found.fields))
    options = list(wrong[: number - 1])
    options.insert(place, found.answer)
    text = with_options(stem, tuple(options))
    return Question(QUESTIONS[kind].family, kind, text, LETTERS[place], tuple(options), frame)
