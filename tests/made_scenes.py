"""Two scenes that move, with questions, shaped as those of `stc.scenes`; and how to be given them.

Run as a program it is `stc-eval` on them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.runtime.evaluate import data


@dataclass(frozen=True)
class MadeQuestion:
    family: str
    kind: str
    text: str
    answer: str
    options: tuple[str, ...]
    frame: int


@dataclass(frozen=True)
class MadeScene:
    """Noise of its own, over which a square moves; the last frames stand still."""

    seed: int
    count: int = 5

    def frames(self) -> NDArray[np.uint8]:
        random = np.random.default_rng(self.seed)
        frames = np.repeat(random.integers(0, 256, (1, 48, 64, 3), np.uint8), self.count, axis=0)
        for index in range(self.count):
            left = 8 * min(index, 3)
            frames[index, 10:26, left : left + 16] = 255 - 40 * (index % 5)
        return frames


QUESTIONS = (
    MadeQuestion("now", "colour", "What colour is the square?", "white", (), 1),
    MadeQuestion("now", "moving", "Is anything moving? A. yes B. no", "A", ("yes", "no"), 1),
    MadeQuestion("backward", "first", "What came first?", "square", (), 4),
)


def made_scenes(count: int = 2) -> list[tuple[MadeScene, tuple[MadeQuestion, ...]]]:
    return [(MadeScene(seed), QUESTIONS) for seed in range(count)]


if __name__ == "__main__":
    from stc.runtime.commands.eval import main

    vars(data)["frozen_test"] = lambda: made_scenes(8)
    sys.exit(main(sys.argv[1:]))
