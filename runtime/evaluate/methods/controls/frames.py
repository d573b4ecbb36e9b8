"""Frames that are not looked at: the last tokens again, or nothing."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from stc.runtime.evaluate.method import CONTROL, Encoded, Method, Pixels, Towers
from stc.runtime.evaluate.methods.stc_methods import StcEncoder
from stc.settings import PRESETS
from stc.shell.ranges import MAX_COUNT, whole

NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class SkippingMethod(Method):
    """Computes every `reference_interval`-th frame, dense: 1/N of the tower's cost."""

    reference_interval: int = PRESETS["cacher"].reference_interval
    source: str = CONTROL

    def __post_init__(self) -> None:
        subject = f"--methods {self.name}:reference_interval"
        whole(subject, self.reference_interval, least=1, most=MAX_COUNT)

    @abstractmethod
    def skipped(self, last: Encoded) -> Encoded:
        """What there is of a frame that is not computed, `last` being the last that was."""

    def open(self, towers: Towers) -> SkippingEncoder:
        return SkippingEncoder(StcEncoder(towers.vision, PRESETS["off"]), self)


@dataclass(frozen=True, kw_only=True)
class CopyLast(SkippingMethod):
    """The other frames have the tokens of the last computed one; prefill is as long as dense."""

    name: str = "copy-last"
    about: str = "3 of 4 frames repeat the tokens of the last computed one"

    def skipped(self, last: Encoded) -> Encoded:
        return replace(last, recomputed=NOTHING, macs=0)


@dataclass(frozen=True, kw_only=True)
class SparseRate(SkippingMethod):
    """The other frames are left out; tower and prefill cost 1/N."""

    name: str = "sparse-rate"
    about: str = "3 of 4 frames are left out, the others are dense"

    def skipped(self, last: Encoded) -> Encoded:
        return Encoded(last.tokens[:0], NOTHING, None, NOTHING, 0)


class SkippingEncoder:
    """Every N-th frame by `encoder`, the others as `method` has it."""

    def __init__(self, encoder: StcEncoder, method: SkippingMethod) -> None:
        self._encoder, self._method = encoder, method
        self._index = 0
        self._last: Encoded | None = None

    def push(self, pixels: Pixels) -> Encoded:
        due = self._index % self._method.reference_interval == 0
        self._index += 1
        if due or self._last is None:
            self._last = self._encoder.push(pixels)
            return self._last
        return self._method.skipped(self._last)
