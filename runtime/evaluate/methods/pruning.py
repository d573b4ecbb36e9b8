"""Methods that keep some of a frame's finished tokens: the tower is dense, or STC-Cacher's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.manifest import VisionSpec
from stc.method.pruner import unit
from stc.runtime.evaluate.method import Chooser, Encoded, FrameEncoder, Method, Pixels, Towers
from stc.runtime.evaluate.methods.cacher_like import CacherLike
from stc.runtime.evaluate.methods.stc_methods import PAPER, StcEncoder
from stc.settings import PRESETS
from stc.shell.ranges import real


def checked_share(method: str, field: str, value: float, most: float = 1.0) -> None:
    """Raise SettingsError unless setting `field` of `method` is a share over 0, at most `most`."""
    real(f"--methods {method}:{field}", value, f"0 < {field} <= {most:g}", above=0.0, most=most)


def kept_of(share: float, pooled: int) -> int:
    """k, the tokens that a `share` of `pooled` = n is: rounded down, at least 1."""
    return max(1, int(share * pooled + 1e-9))


def directions(tokens: NDArray[Any]) -> NDArray[np.float32]:
    """tokens [n, D] in float32, each of length 1."""
    scaled: NDArray[np.float32] = unit(tokens.astype(np.float32))
    return scaled


def lowest(scores: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The places of the `count` lowest scores [n], ascending; of equal ones the first."""
    return np.sort(np.argsort(scores, kind="stable")[:count])


@dataclass(frozen=True, kw_only=True)
class PruningMethod(Method):
    """Keeps some of the whole tokens of a dense tower: prefill is saved, the tower is not."""

    @abstractmethod
    def choosing(self, spec: VisionSpec) -> Chooser:
        """What chooses the kept tokens of a new stream."""

    def chooser(self, towers: Towers) -> Chooser:
        return self.choosing(towers.spec)

    def open(self, towers: Towers) -> FrameEncoder:
        return ChosenEncoder(StcEncoder(towers.vision, PRESETS["off"]), self.choosing(towers.spec))


OWN = ("reference_interval", "recompute_ratio")
"""Settings of CachedPruning that are not those of its pruning."""


@dataclass(frozen=True, kw_only=True)
class CachedPruning(CacherLike):
    """The tokens that `pruning` keeps of a tower with STC-Cacher, as preset `paper` sets it.

    Its settings are those of `pruning`, reference_interval and recompute_ratio.
    """

    pruning: PruningMethod
    reference_interval: int = PRESETS["paper"].reference_interval
    recompute_ratio: float = PRESETS["paper"].recompute_ratio

    def chooser(self, towers: Towers) -> Chooser:
        return self.pruning.chooser(towers)

    def open(self, towers: Towers) -> FrameEncoder:
        encoder = StcEncoder(towers.vision, self.cacher())
        return ChosenEncoder(encoder, self.pruning.choosing(towers.spec))

    def settings(self, spec: VisionSpec) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in OWN}, **self.pruning.settings(spec)}

    def given(self, options: Mapping[str, str]) -> Method:
        mine = {name: text for name, text in options.items() if name in OWN}
        inner = {name: text for name, text in options.items() if name not in OWN}
        changed, pruning = super().given(mine), self.pruning.given(inner)
        assert isinstance(changed, CachedPruning) and isinstance(pruning, PruningMethod)
        return replace(changed, pruning=pruning)


def cached(pruning: PruningMethod) -> CachedPruning:
    """`pruning` on STC-Cacher's tokens, called `cacher+` and its name."""
    return CachedPruning(
        name=f"cacher+{pruning.name}",
        about=f"{pruning.name} of the tokens that STC-Cacher's tower makes",
        source=f"{PAPER}, {pruning.source}",
        pruning=pruning,
    )


class ChosenEncoder:
    """Of each frame's whole tokens by `encoder`, those that `choose` keeps."""

    def __init__(self, encoder: StcEncoder, choose: Chooser) -> None:
        self._encoder = encoder
        self._choose = choose

    def push(self, pixels: Pixels) -> Encoded:
        encoded = self._encoder.push(pixels)
        assert encoded.whole is not None
        kept = self._choose(encoded.whole)
        return replace(encoded, tokens=encoded.whole[kept], kept=kept)
