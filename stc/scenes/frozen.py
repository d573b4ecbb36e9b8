"""The frozen test: scenes of the test split and questions, the same for everybody for ever."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from stc.scenes.chance import generator, pick, shuffled
from stc.scenes.facts import Facts
from stc.scenes.finders import FINDERS, Found
from stc.scenes.questions import as_choice, in_a_word, wrong_ones
from stc.scenes.scene import Scene, make_scene
from stc.scenes.words import LETTERS, QUESTIONS, Question

SEEDS: tuple[int, ...] = ()
"""Scenes that together offer every answer to every kind of question (`scripts/scene-data`)."""
FROZEN_SHA256 = ""
"""Of all frames, questions, answers and frames asked at."""

EACH = {2: 10, 3: 6, 4: 5, 5: 4, 6: 3, 7: 3, 10: 2}
"""How often each answer is right, by how many answers a kind has: in a word, and as a choice."""
MOST = 16
"""Questions to one scene."""


@dataclass(frozen=True)
class Cell:
    """One answer to one kind of question, in one form."""

    kind: str
    choice: bool
    answer: str


Offers = dict[tuple[str, str], list[tuple[Found, int]]]
"""What a scene offers to be asked, by kind and answer, with the frame."""


def cells() -> dict[Cell, int]:
    """How many questions each cell holds."""
    return {
        Cell(name, choice, answer): EACH[len(kind.answers)]
        for name, kind in QUESTIONS.items()
        for choice in (False, True)
        for answer in kind.answers
    }


def offers(scene: Scene) -> Offers:
    facts = Facts(scene.labels, scene.plan.camera)
    out: Offers = {}
    for kind, finder in FINDERS.items():
        for frame in range(1, scene.frame_count):
            for found in finder(facts, frame):
                out.setdefault((kind, found.answer), []).append((found, frame))
    return out


def dealt(offered: list[Offers]) -> list[list[Cell]]:
    """Which cells each scene fills: scarce ones first, by the scenes with least to do.

    A scene is asked each kind at most once in a word and once as a choice.
    """
    out: list[list[Cell]] = [[] for _ in offered]
    able = {
        cell: [n for n, one in enumerate(offered) if (cell.kind, cell.answer) in one]
        for cell in cells()
    }
    for cell, count in sorted(cells().items(), key=lambda item: len(able[item[0]]) / item[1]):
        for _ in range(count):
            free = [n for n in able[cell] if len(out[n]) < MOST and not _asked(out[n], cell)]
            if free:
                out[min(free, key=lambda n: (len(out[n]), n))].append(cell)
    return out


def _asked(cells_of_scene: list[Cell], cell: Cell) -> bool:
    return any((cell.kind, cell.choice) == (one.kind, one.choice) for one in cells_of_scene)


@cache
def frozen_test() -> tuple[tuple[Scene, tuple[Question, ...]], ...]:
    """Scenes with their questions, by frame asked.

    Each kind has equal counts of every answer, in words and as choices; the right letters of its
    choices are as even as their number allows.
    """
    scenes = [make_scene("test", seed) for seed in SEEDS]
    offered = [offers(scene) for scene in scenes]
    random = generator(5)
    places = _Places(random)
    out = []
    for scene, offer, chosen in zip(scenes, offered, dealt(offered), strict=True):
        facts = Facts(scene.labels, scene.plan.camera)
        asked = [_question(random, places, facts, offer, cell) for cell in chosen]
        out.append((scene, tuple(sorted(asked, key=lambda one: (one.frame, one.text)))))
    return tuple(out)


class _Places:
    """Where the right option stands: every letter once before one comes again."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._left: dict[str, list[int]] = {}

    def of(self, kind: str, number: int) -> int:
        left = self._left.get(kind) or shuffled(self._random, range(number))
        self._left[kind] = left[1:]
        return left[0]


def _question(
    random: np.random.Generator, places: _Places, facts: Facts, offer: Offers, cell: Cell
) -> Question:
    found, frame = pick(random, offer[cell.kind, cell.answer])
    wording = pick(random, QUESTIONS[cell.kind].wordings)
    if not cell.choice:
        return in_a_word(cell.kind, found, frame, wording)
    number = min(len(LETTERS), len(QUESTIONS[cell.kind].answers))
    wrong = wrong_ones(facts, random, cell.kind, found)
    place = places.of(cell.kind, number)
    return as_choice(cell.kind, found, frame, wording, wrong, place, number)


def frozen_sha256() -> str:
    """Worked out again from all frames and questions."""
    out = hashlib.sha256()
    for scene, questions in frozen_test():
        out.update(scene.frames().tobytes())
        out.update(repr([(q.frame, q.text, q.answer) for q in questions]).encode())
    return out.hexdigest()


def best_seeds(pool: int, count: int, silent: int) -> list[int]:
    """`count` of the first `pool` test scenes, `silent` of them empty, that leave least unasked.

    Each next one is that which offers most of what is still scarce.
    """
    scenes = [make_scene("test", seed) for seed in range(pool)]
    offered = [offers(scene) for scene in scenes]
    wanted = Counter({(one.kind, one.answer): 2 * number for one, number in cells().items()})
    supply = Counter(key for offer in offered for key in offer)
    empty = [seed for seed, scene in enumerate(scenes) if not scene.labels.things]
    out = empty[:silent]
    for seed in out:
        wanted.subtract(offered[seed].keys())
    while len(out) < count:
        gains = {
            seed: sum(max(0, wanted[key]) / supply[key] for key in offered[seed])
            for seed in range(pool)
            if seed not in out
        }
        best = max(gains, key=lambda seed: (gains[seed], -seed))
        out.append(best)
        wanted.subtract(offered[best].keys())
    return sorted(out)
