"""Generated video streams with questions and right answers: what small models are trained on."""

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
    "KINDS",
    "PATCH",
    "SHAPES",
    "SIDE",
    "Labels",
    "Question",
    "Scene",
    "Thing",
    "make_scene",
    "stems",
    "words",
]
