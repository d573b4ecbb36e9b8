"""The control that sees nothing: what questions give away by themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stc.runtime.evaluate.method import CONTROL, Encoded, Method, Pixels, Towers


@dataclass(frozen=True, kw_only=True)
class Blind(Method):
    """No token of any frame is read, and no tower runs."""

    def open(self, towers: Towers) -> BlindEncoder:
        return BlindEncoder(towers)


class BlindEncoder:
    """A stream of which nothing is kept."""

    def __init__(self, towers: Towers) -> None:
        width, none = towers.spec.language_width, np.empty(0, np.int64)
        self._nothing = Encoded(np.empty((0, width), towers.vision.dtype), none, None, none, 0)

    def push(self, pixels: Pixels) -> Encoded:
        return self._nothing


BLIND = Blind(name="blind", about="no frame is seen, questions alone are read", source=CONTROL)
