"""What methods are measured on: frames to watch, and questions with the moment they are asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError, VideoError
from stc.runtime.answers.scoring import is_right
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import without_credentials
from stc.scenes import frozen_test
from stc.shell.ranges import shown

Pictures = Sequence[NDArray[np.uint8]]
"""The frames of one scene, each uint8 [height_px, width_px, 3]."""
SCENES, CLIP = "scenes", "clip:"
FRAMES = 32
"""Frames of a clip that are measured unless it is said otherwise."""


class Question(Protocol):
    """Asked when frames 0 to `frame` have been seen.

    family, kind: what it is counted as. text: with its options, if it has any; `answer` is the
    right one. options: what can be chosen from, none where the answer is free.
    """

    @property
    def family(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def frame(self) -> int: ...


@dataclass(frozen=True)
class Item:
    """A scene: its name in the data, a function that yields its frames, and its questions."""

    key: str
    pictures: Callable[[], Pictures]
    questions: tuple[Question, ...] = ()


Score = Callable[[Question, str], bool]
"""Whether an answer is right."""


def exact(question: Question, answer: str) -> bool:
    """Whether `answer` is the right one but for blanks around it, case and a full stop."""
    return is_right(answer, question.answer)


@dataclass(frozen=True)
class Data:
    """Scenes to measure on.

    digest: sha256 over all frames and questions there are, also those that `items` leaves out.
    score: what makes an answer right; scoring: the same in words.
    """

    name: str
    digest: str
    items: tuple[Item, ...]
    score: Score = exact
    scoring: str = "the answer, stripped, in lower case and without a full stop, is the right one"


def open_data(word: str, frames: int | None = None, limit: int | None = None) -> Data:
    """The data that `--data word` names, the first `limit` scenes of it or `frames` of a clip.

    Raises SettingsError for another word and for what would change nothing, VideoError for a clip
    that cannot be read.
    """
    if word.startswith(CLIP):
        if limit is not None:
            fix = "use --frames"
            raise SettingsError("--limit", f"has no effect with --data {CLIP}FILE", fix=fix)
        return clip(word.removeprefix(CLIP), FRAMES if frames is None else frames)
    if frames is not None:
        raise SettingsError("--frames", f"requires --data {CLIP}FILE")
    if word != SCENES:
        raise SettingsError("--data", f"got {shown(word)}", f"{SCENES} or {CLIP}FILE", _meant(word))
    return scenes(SCENES, frozen_test(), limit)


def _meant(word: str) -> str:
    """What to write instead where `word` is a path."""
    with suppress(OSError):  # a name too long
        if Path(word).is_dir():
            return "a folder of a benchmark's files takes --benchmark NAME too"
        if Path(word).is_file():
            return f"write {CLIP}{word} for a video, or --benchmark NAME too for its questions"
    return ""


def scenes(name: str, made: Iterable[tuple[Any, Sequence[Question]]], limit: int | None) -> Data:
    """The data called `name` of pairs of a scene, whose `frames()` are uint8 [F, height_px,
    width_px, 3], and its questions; the first `limit` of them are measured, None for all.

    Raises SettingsError for a question about a frame that its scene does not have.
    """
    digest, items = hashlib.sha256(), []
    for number, (scene, questions) in enumerate(made):
        pictures: Pictures = list(scene.frames())
        for one in questions:
            digest.update(repr((number, one.text, one.answer, one.options, one.frame)).encode())
            if not 0 <= one.frame < len(pictures):
                got = f"scene {number} is asked at frame {one.frame}"
                raise SettingsError(f"data {name}", got, f"0 to {len(pictures) - 1}")
        _add_pictures(digest, pictures)
        items.append(Item(f"{number:05d}", _held(pictures), tuple(questions)))
    return Data(name, digest.hexdigest(), tuple(items[:limit]))


def clip(path: str, frames: int) -> Data:
    """The first `frames` frames of a video, about which nothing is asked.

    Raises VideoError when it cannot be read or has no frame.
    """
    with open_video(path) as source:
        pictures = [frame.rgb for frame in islice(source, frames)]
    name = without_credentials(path)
    if not pictures:
        raise VideoError(name, "no frame", "at least one")
    digest = hashlib.sha256()
    _add_pictures(digest, pictures)
    return Data(f"{CLIP}{name}", digest.hexdigest(), (Item("clip", _held(pictures)),))


def _add_pictures(digest: hashlib._Hash, pictures: Pictures) -> None:
    for rgb in pictures:
        digest.update(repr(rgb.shape).encode())
        digest.update(rgb.tobytes())


def _held(pictures: Pictures) -> Callable[[], Pictures]:
    return lambda: pictures
