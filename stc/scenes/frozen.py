"""The frozen test: scenes of the test split and questions, the same for everybody for ever."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from stc.scenes.chance import chance, generator, pick, shuffled, whole
from stc.scenes.facts import Facts
from stc.scenes.finders import FINDERS, Found
from stc.scenes.questions import AIMS, as_choice, in_a_word, wrong_ones
from stc.scenes.scene import Scene, make_scene
from stc.scenes.words import LETTERS, QUESTIONS, YES_NO, Question

SEEDS: tuple[int, ...] = tuple(
    int(seed)
    for seed in """
    3 5 8 11 14 17 19 20 22 25 28 38 46 47 49 62 73 78 79 82 94 105 117 137 145 147 150 154
    156 159 163 178 189 249 261 264 278 288 305 318 320 330 346 350 358 368 370 373 389 400
    404 405 423 430 444 458 474 475 476 535 561 567 589 603 615 618 620 622 655 661 691 722
    726 736 741 754
    """.split()
)
"""Scenes that together offer every answer to every kind of question (`scripts/scene-data`)."""
FROZEN_SHA256 = "34394d00df528303d7fab4417a1143f0ca1e357b939bd91be58531e9a534a56d"
"""Of all frames, questions, answers and frames asked at."""

EACH = {2: 10, 3: 6, 4: 5, 5: 4, 6: 3, 7: 3, 10: 2}
"""How often each answer is right, by how many answers a kind has: in a word, and as a choice."""
MOST = 16
"""Questions to one scene."""
_SLACK = 1.5


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
    deal = _Deal(offered)
    able = {cell: len(deal.able(cell)) for cell in cells()}
    for cell, count in sorted(cells().items(), key=lambda item: able[item[0]] / item[1]):
        for _ in range(count):
            deal.place(cell)
    return deal.held


class _Deal:
    """Cells being handed to scenes; `held` are those of each scene."""

    def __init__(self, offered: list[Offers]) -> None:
        self._offered = offered
        self.held: list[list[Cell]] = [[] for _ in offered]

    def able(self, cell: Cell) -> list[int]:
        """The scenes that offer it."""
        return [n for n, one in enumerate(self._offered) if (cell.kind, cell.answer) in one]

    def place(self, cell: Cell) -> None:
        """Gives it to a scene, if need be to one that hands its like on to another."""
        best = self._free(cell)
        for n in self.able(cell) if best is None else ():
            like = self._like(n, cell)
            other = None if like is None else self._free(like)
            if like is not None and other is not None:
                self.held[n].remove(like)
                self.held[other].append(like)
                best = n
                break
        if best is None:
            raise ValueError(f"no scene of SEEDS is left for {cell}; choose them again")
        self.held[best].append(cell)

    def _free(self, cell: Cell) -> int | None:
        """The scene with least to do of those that can take it."""
        free = (n for n in self.able(cell) if self._like(n, cell) is None)
        able = [n for n in free if len(self.held[n]) < MOST]
        return min(able, key=lambda n: (len(self.held[n]), n), default=None)

    def _like(self, n: int, cell: Cell) -> Cell | None:
        """What the scene is asked already of the same kind in the same form."""
        same = (one for one in self.held[n] if (one.kind, one.choice) == (cell.kind, cell.choice))
        return next(same, None)


def frozen_test() -> list[tuple[Scene, list[Question]]]:
    """Scenes with their questions, by frame asked.

    Each kind has equal counts of every answer, in words and as choices; the right letters of its
    choices are as even as their number allows.
    """
    return [(scene, list(questions)) for scene, questions in _frozen()]


@cache
def _frozen() -> tuple[tuple[Scene, tuple[Question, ...]], ...]:
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
    found, frame = _moment(random, offer[cell.kind, cell.answer], cell)
    wording = pick(random, QUESTIONS[cell.kind].wordings)
    if not cell.choice:
        return in_a_word(cell.kind, found, frame, wording)
    number = min(len(LETTERS), len(QUESTIONS[cell.kind].answers))
    wrong = wrong_ones(facts, random, cell.kind, found)
    place = places.of(cell.kind, number)
    return as_choice(cell.kind, found, frame, wording, wrong, place, number)


def _moment(
    random: np.random.Generator, offered: list[tuple[Found, int]], cell: Cell
) -> tuple[Found, int]:
    """One of what is offered, so that of yes and no neither is mostly right late in a stream.

    Of dots many are asked late, when nothing has moved for long.
    """
    if cell.kind in ("dot colour", "dot where") and chance(random, 0.6):
        return offered[-1]
    if cell.answer not in YES_NO:
        return pick(random, offered)
    aim = whole(random, *AIMS.get((cell.kind, cell.answer), (4, 12)))
    near = min(abs(frame - aim) for _, frame in offered)
    return pick(random, [one for one in offered if abs(one[1] - aim) == near])


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
    offered = [_shares(offers(scene)) for scene in scenes]
    wanted = {(cell.kind, cell.answer): _SLACK * number for cell, number in cells().items()}
    supply = {key: sum(offer.get(key, 0.0) for offer in offered) for key in wanted}
    out: list[int] = []

    def gain(seed: int) -> float:
        offer = offered[seed].items()
        return sum(share * max(0.0, wanted[key]) / supply[key] for key, share in offer)

    empty = [seed for seed, scene in enumerate(scenes) if not scene.labels.things]
    while len(out) < count:
        free = empty[:silent] if len(out) < silent else range(pool)
        out.append(max((seed for seed in free if seed not in out), key=gain))
        for key, share in offered[out[-1]].items():
            wanted[key] -= share
    return sorted(out)


def _shares(offer: Offers) -> dict[tuple[str, str], float]:
    """A scene is asked a kind once in each form: its answers share that."""
    kinds = Counter(kind for kind, _ in offer)
    return {(kind, answer): 1 / kinds[kind] for kind, answer in offer}
