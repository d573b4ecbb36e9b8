"""One stream's way through the tower: pixels -> hidden states, as reference or reuse frame.

The method is arXiv 2512.00891, STC-Cacher: a reference frame computes every token and leaves
keys, values and residuals behind; a reuse frame computes fresh keys, recomputes the M tokens
whose keys changed most and takes the rest from the references, which it does not change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    COUNT,
    HIDDEN,
    HIDDEN_OUT,
    INDICES,
    KEY,
    PIXEL_VALUES,
    REF_KEY,
    REF_RESIDUAL,
    REF_VALUE,
    RESIDUAL,
    SCORE,
    VALUE,
)
from stc.engines.engine import Engine, Tensor
from stc.runtime.references import References
from stc.runtime.tower import VisionTower
from stc.settings import Selection

Observer = Callable[[str, Mapping[str, Tensor]], None]
"""Called with a graph's name and outputs after each run."""


class StreamVision:
    """The tower as one stream uses it, with that stream's references and work buffers.

    `engine_ms` grows by the wall time of every engine call. `selected` is what the select graph
    gave in the last reuse frame, block by block, however far that came. Returned tensors are work
    buffers: the next frame overwrites them.
    """

    def __init__(self, tower: VisionTower) -> None:
        spec, backend = tower.spec, tower.backend
        self.tower = tower
        self.references = References(tower)
        self.engine_ms = 0.0
        self.observer: Observer | None = None
        self.selected: list[Tensor] = []
        heads = (spec.heads, spec.tokens, spec.head_width)
        rows = (spec.tokens, spec.width)
        self._hidden = [backend.empty(rows, tower.dtype) for _ in range(2)]
        self._key = backend.empty(heads, tower.dtype)
        # Stand-ins for references where every token is computed and none is read.
        self._no_heads = backend.to_device(np.zeros(heads, tower.dtype))
        self._no_rows = backend.to_device(np.zeros(rows, tower.dtype))
        self._all_tokens = backend.to_device(np.arange(spec.tokens, dtype=np.int64))

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds on the backend's device, references included."""
        work = [*self._hidden, self._key, self._no_heads, self._no_rows, self._all_tokens]
        return [*self.references.tensors, *work]

    def reference(self, pixel_values: NDArray[np.floating]) -> Tensor:
        """hidden [T, C] after the last block, every token computed; references renewed."""
        references = self.references
        references.valid = False
        hidden = self._embed(pixel_values)
        for block, (keys, update) in enumerate(
            zip(self.tower.keys, self.tower.updates, strict=True)
        ):
            self.run(keys, {HIDDEN: hidden, REF_KEY: self._no_heads}, {KEY: references.key[block]})
            hidden = self._update(
                update,
                {
                    HIDDEN: hidden,
                    KEY: references.key[block],
                    REF_VALUE: self._no_heads,
                    REF_RESIDUAL: self._no_rows,
                    INDICES: self._all_tokens,
                },
                {VALUE: references.value[block], RESIDUAL: references.residual[block]},
            )
        references.valid = True
        return hidden

    def reuse(
        self,
        pixel_values: NDArray[np.floating],
        recomputed: int,
        selection: Selection,
        forced: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """hidden [T, C] after the last block, and indices int64 [M = `recomputed`] of each block.

        The references must be valid; they are read and not changed. `forced` are each block's
        indices, instead of those it would select.
        """
        references, backend = self.references, self.tower.backend
        count = backend.to_device(np.array([recomputed], np.int64))
        self.selected = []
        hidden = self._embed(pixel_values)
        chosen: list[Tensor] = []
        for block, (keys, update) in enumerate(
            zip(self.tower.keys, self.tower.updates, strict=True)
        ):
            selects = selection == "layerwise" or block == 0
            fresh = self.run(
                keys,
                {HIDDEN: hidden, REF_KEY: references.key[block]},
                {KEY: self._key, SCORE: None} if selects else {KEY: self._key},
            )
            if forced is not None:
                indices = backend.to_device(forced[block])
            elif selects:
                score = {SCORE: fresh[SCORE], COUNT: count}
                indices = self.run(self.tower.select, score)[INDICES]
                self.selected.append(indices)
            chosen.append(indices)
            hidden = self._update(
                update,
                {
                    HIDDEN: hidden,
                    KEY: self._key,
                    REF_VALUE: references.value[block],
                    REF_RESIDUAL: references.residual[block],
                    INDICES: indices,
                },
                {},
            )
        return hidden, chosen

    def run(
        self,
        engine: Engine,
        inputs: Mapping[str, Tensor],
        outputs: Mapping[str, Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """The engine's outputs, its time added to `engine_ms` and shown to the observer."""
        start = time.perf_counter()
        result = engine(inputs, outputs)
        self.engine_ms += (time.perf_counter() - start) * 1e3
        if self.observer is not None:
            self.observer(engine.name, result)
        return result

    def _embed(self, pixel_values: NDArray[np.floating]) -> Tensor:
        pixels = self.tower.backend.to_device(pixel_values)
        return self.run(self.tower.embed, {PIXEL_VALUES: pixels}, {HIDDEN: self._hidden[0]})[HIDDEN]

    def _update(
        self, engine: Engine, inputs: Mapping[str, Tensor], kept: Mapping[str, Tensor | None]
    ) -> Tensor:
        """hidden_out, in the work buffer that does not hold the input."""
        here, there = self._hidden
        self._hidden = [there, here]
        return self.run(engine, inputs, {HIDDEN_OUT: there, **kept})[HIDDEN_OUT]
