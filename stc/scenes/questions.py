"""Questions about a scene, drawn for training: kinds and answers as even as the scene allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stc.scenes.chance import chance, pick, shuffled, whole
from stc.scenes.facts import Facts
from stc.scenes.finders import FINDERS, Found
from stc.scenes.labels import Labels
from stc.scenes.stage.camera import Camera
from stc.scenes.words import LETTERS, QUESTIONS, YES_NO, Question, with_options

AIMS: dict[tuple[str, str], tuple[int, int]] = {
    ("anything", "yes"): (4, 9),
    ("left yet", "yes"): (4, 7),
    ("left yet", "no"): (9, 14),
    ("moving", "yes"): (5, 12),
    ("moving", "no"): (4, 9),
}
"""Frames between which yes or no is asked for, if it can be, against what time alone tells."""
_AIMED = 0.7
"""How often training keeps to them."""
_FRAMES_TRIED = 3
_ROUNDS = 4
_KEPT: dict[tuple[str, str], float] = {
    ("how many", "zero"): 0.12,
    ("how many", "one"): 0.25,
    ("how many", "two"): 0.3,
    ("how many came", "zero"): 0.17,
    ("how many came", "one"): 0.35,
    ("how many came", "two"): 0.4,
    ("way", "still"): 0.13,
    ("moving", "no"): 0.6,
    ("person", "no"): 0.07,
    ("was there", "no"): 0.7,
    ("anything", "yes"): 0.7,
    ("appeared", "no"): 0.7,
    ("person yet", "no"): 0.1,
    ("left yet", "no"): 0.055,
    ("dot", "no"): 0.12,
}
"""How often an answer that most scenes offer is taken, so that all are about as frequent."""
_RARE = {
    "first shape": 6,
    "first colour": 6,
    "gone colour": 9,
    "gone shape": 9,
    "way it left": 9,
    "person where": 4,
    "dot colour": 4,
    "dot where": 4,
    "digit": 4,
    "way": 5,
    "moving": 2,
    "how many": 2,
    "how many came": 2,
    "left yet": 9,
    "person": 4,
    "person yet": 4,
    "dot": 4,
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
    last = facts.frame_count - 1
    aim, wanted = (1, last), ""
    if QUESTIONS[kind].answers == YES_NO:
        wanted = pick(random, YES_NO)
        if chance(random, _AIMED):
            aim = AIMS.get((kind, wanted), aim)
    for _ in range(_FRAMES_TRIED):
        frame = whole(random, min(last, aim[0]), min(last, aim[1]))
        for found in FINDERS[kind](facts, frame):
            if wanted in ("", found.answer):
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
