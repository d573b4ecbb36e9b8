"""Generated video streams with questions and right answers: what small models are trained on."""

from stc.scenes.frozen import FROZEN_SHA256, frozen_sha256, frozen_test
from stc.scenes.labels import Labels
from stc.scenes.scene import Scene, make_scene
from stc.scenes.words import (
    CELLS,
    COLOURS,
    DIGITS,
    FPS,
    KINDS,
    PATCH,
    SHAPES,
    SIDE,
    Question,
    Thing,
    stems,
    words,
)

__all__ = [
    "CELLS",
    "COLOURS",
    "DIGITS",
    "FPS",
    "FROZEN_SHA256",
    "KINDS",
    "PATCH",
    "SHAPES",
    "SIDE",
    "Labels",
    "Question",
    "Scene",
    "Thing",
    "frozen_sha256",
    "frozen_test",
    "make_scene",
    "stems",
    "words",
]
