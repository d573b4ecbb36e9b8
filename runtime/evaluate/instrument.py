"""The measurement itself: every scene through every method, beside dense frames.

A scene's dense tokens are computed once and every method is compared with them. Times are taken in
turns: dense frames of a scene, then each method's, so that a busy machine is busy for all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stc.errors import NonFiniteError
from stc.runtime.evaluate.data import Data, Item, Pictures
from stc.runtime.evaluate.fidelity import DenseFrame, compare_frames
from stc.runtime.evaluate.method import Encoded, FrameEncoder, Method, Pixels, Towers
from stc.runtime.evaluate.methods import METHODS
from stc.runtime.evaluate.methods.stc_methods import DENSE, StcEncoder
from stc.runtime.evaluate.reader import Reader
from stc.runtime.evaluate.statistics import divergence
from stc.runtime.evaluate.store import Record, SceneFile, Store
from stc.runtime.vision.preprocess import Preprocessor

WARM_UP = 2
"""Frames that every method is shown before any is measured: a reference and a reuse frame."""


class Instrument:
    """Measures `methods`, by how they are called, the dense one among them, on `data`.

    reader: what answers; None where nothing is asked. header: what all of it is measured with;
    `open` says how scenes that are there already are dealt with, as `Store.open` has it.
    """

    def __init__(
        self,
        towers: Towers,
        reader: Reader | None,
        data: Data,
        methods: Mapping[str, Method],
        store: Store,
        header: Mapping[str, Any],
        *,
        force: bool = False,
    ) -> None:
        self._towers, self._reader, self._data = towers, reader, data
        self._methods, self._store = dict(methods), store
        self.files: dict[str, SceneFile] = {}
        for label, method in self._methods.items():
            own = {"settings": method.settings(towers.spec), "source": method.source}
            self.files[label] = store.open(label, {**header, **own}, force=force)
        self._preprocess = Preprocessor(towers.spec)

    @property
    def whole(self) -> int:
        """Questions to all methods; clips of all methods where nothing is asked."""
        return len(self._methods) * sum(map(self._weight, self._data.items))

    @property
    def there(self) -> int:
        """How many of `whole` are measured."""
        left = (len(self._todo(item)) * self._weight(item) for item in self._data.items)
        return self.whole - sum(left)

    def run(self, tick: Callable[[int], None]) -> None:
        """Whatever is missing is measured and stored; `tick` gets how many of `whole` are there
        more after each scene of a method.

        Raises EngineError, NonFiniteError or LanguageError when a graph, a method or the decoder
        fails; finished scenes are kept.
        """
        waiting = [item for item in self._data.items if self._todo(item)]
        for number, item in enumerate(waiting):
            scene = _Scene(self._towers, item, self._pixels(item.pictures()))
            if number == 0:
                self._warm_up(scene.pixels)
            for label in self._todo(item):
                self.files[label].add(self._measured(label, scene))
                tick(self._weight(item))

    def _weight(self, item: Item) -> int:
        return 1 if self._reader is None else len(item.questions)

    def _todo(self, item: Item) -> list[str]:
        """Methods that `item` was not measured with yet, dense first."""
        labels = sorted(self._methods, key=lambda label: label != DENSE)
        return [label for label in labels if item.key not in self.files[label].records]

    def _pixels(self, pictures: Pictures) -> list[Pixels]:
        return [self._preprocess(rgb).astype(np.float32, copy=False) for rgb in pictures]

    def _warm_up(self, pixels: Sequence[Pixels]) -> None:
        for method in self._methods.values():
            encoder = method.open(self._towers)
            for frame in pixels[:WARM_UP]:
                encoder.push(frame)

    def _measured(self, label: str, scene: _Scene) -> Record:
        method, item = self._methods[label], scene.item
        dense = scene.dense
        other_ms = dense.ms if method.runtime == "engines" else scene.torch_ms
        if label == DENSE:
            encoded, spent_ms = dense.encoded, dense.ms
        else:
            encoded, spent_ms = _encoded(label, method.open(self._towers), scene.pixels)
        chooser = method.chooser(self._towers)
        record: Record = {
            "scene": item.key,
            "ms": spent_ms,
            "dense_ms": other_ms,
            "frames": [frame.to_json() for frame in compare_frames(encoded, dense.frames, chooser)],
        }
        if self._reader is None or not item.questions:
            return record
        reading = self._reader.read(encoded, item.questions)
        if label == DENSE:
            self._store.keep_dense(item.key, reading.first)
            first = reading.first
        else:
            first = self._store.dense(item.key)
        record["prefill_ms"] = reading.prefill_ms
        record["questions"] = [
            {
                "answer": answer,
                "right": self._data.score(question, answer),
                "strict": answer == question.answer,
                "kl": divergence(expected, got),
                "same_first": int(expected.argmax()) == int(got.argmax()),
            }
            for question, answer, expected, got in zip(
                item.questions, reading.answers, first, reading.first, strict=True
            )
        ]
        return record


@dataclass(frozen=True)
class _Dense:
    encoded: list[Encoded]
    frames: list[DenseFrame]
    ms: list[float]


class _Scene:
    """One scene; what of it every method needs is computed once, when it is first asked for."""

    def __init__(self, towers: Towers, item: Item, pixels: list[Pixels]) -> None:
        self.item, self.pixels, self._towers = item, pixels, towers

    @cached_property
    def dense(self) -> _Dense:
        encoder = METHODS[DENSE].open(self._towers)
        assert isinstance(encoder, StcEncoder)
        frames: list[DenseFrame] = []

        def look(frame: Encoded) -> None:
            frames.append(DenseFrame(frame.tokens, encoder.hidden, frame.macs))

        encoded, spent_ms = _encoded(DENSE, encoder, self.pixels, look)
        return _Dense(encoded, frames, spent_ms)

    @cached_property
    def torch_ms(self) -> list[float]:
        """What each frame takes dense in PyTorch."""
        tower, spent_ms = self._towers.torch, []
        for pixels in self.pixels:
            start = time.perf_counter()
            tower.project(tower.dense(pixels))
            spent_ms.append((time.perf_counter() - start) * 1e3)
        return spent_ms


def _encoded(
    label: str,
    encoder: FrameEncoder,
    pixels: Sequence[Pixels],
    look: Callable[[Encoded], None] = lambda _: None,
) -> tuple[list[Encoded], list[float]]:
    """The frames of one stream, and the milliseconds from pixels to kept tokens of each.

    Raises NonFiniteError when a kept token is no number.
    """
    found: list[Encoded] = []
    spent_ms: list[float] = []
    for index, frame in enumerate(pixels):
        start = time.perf_counter()
        encoded = encoder.push(frame)
        spent_ms.append((time.perf_counter() - start) * 1e3)
        if not np.isfinite(encoded.tokens).all():
            raise NonFiniteError(f"method {label}, frame {index}", "NaN or infinity in its tokens")
        look(encoded)
        found.append(encoded)
    return found, spent_ms
