"""One stream's frames on a device: from pixel values to kept tokens without waiting in between.

Every frame works at the same addresses (`stc.runtime.device_buffers`), so a frame of each kind is
one CUDA graph after its first two runs. References are kept twice: a reference frame writes the
set that no frame reads and becomes the one that is read only when it has succeeded. Each set has
its own two graphs, so addresses never change under one.

Inputs go up before the graph and results come down after it; the host waits once per frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    COUNT,
    FRAME_MEAN,
    HIDDEN,
    HIDDEN_OUT,
    HISTORY_COUNT,
    HISTORY_MEAN,
    INDICES,
    KEPT,
    KEPT_INDICES,
    KEY,
    PIXEL_VALUES,
    REF_KEY,
    REF_RESIDUAL,
    REF_VALUE,
    RESIDUAL,
    SCORE,
    TOKENS,
    VALUE,
)
from stc.engines.device_tensor import DeviceTensor
from stc.engines.recording import Recording
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.pruner import PrunerMemory
from stc.runtime.device_buffers import (
    FIRST_INDICES,
    HIDDENS,
    LATER_INDICES,
    DeviceBuffers,
)
from stc.runtime.references import References
from stc.runtime.report import FrameKind
from stc.runtime.tower import VisionTower
from stc.settings import Settings


@dataclass(frozen=True)
class DeviceOutcome:
    """A frame's results on the host, the caller's own.

    recomputed: of block 0. frame_mean: None where all tokens are kept.
    gpu_ms: GPU time of `vision`, `project` and `prune`.
    """

    recomputed: NDArray[np.int64]
    tokens: NDArray[Any]
    kept: NDArray[np.int64]
    frame_mean: NDArray[np.float32] | None
    gpu_ms: dict[str, float]


class DeviceFrame:
    """The buffers and graphs of one stream; its tower is on `backend`.

    references: the two sets; `front` is the one that reuse frames read.

    Raises DeviceError when there is not enough memory, SettingsError for a budget over n.
    """

    def __init__(
        self,
        tower: VisionTower,
        backend: TensorRtBackend,
        settings: Settings,
        references: tuple[References, References],
    ) -> None:
        spec = tower.spec
        self.front = 0
        self.references = references
        self._tower = tower
        self._backend = backend
        self._settings = settings
        self._recomputed = settings.recomputed(spec.tokens)
        self._kept = settings.kept(spec.pooled)
        self._prune = tower.prune(settings.pruner) if self._kept < spec.pooled else None
        self._recordings: dict[tuple[FrameKind, int], Recording] = {}
        self._buffers = DeviceBuffers(tower, backend, settings)

    def run(self, pixel_values: Any, kind: FrameKind, memory: PrunerMemory) -> DeviceOutcome:
        """The frame's outcome; a reference frame's references are the front from then on.

        `pixel_values` [3, Hpx, Wpx] in the network's dtype, on the host or on this GPU. Raises
        EngineError; the front is as before then.
        """
        buffers = self._buffers
        buffers.upload_pixels(pixel_values)
        buffers.upload(HISTORY_MEAN, memory.mean)
        buffers.upload(HISTORY_COUNT, np.array([memory.count], np.float32))
        self._recording(kind).run()
        wanted = [TOKENS] if self._prune is None else [KEPT, KEPT_INDICES, FRAME_MEAN]
        if kind == "reuse":
            wanted.append(FIRST_INDICES)
        buffers.download(wanted)
        if kind == "reference":
            self.front = 1 - self.front
        return self._outcome(kind)

    @property
    def captured(self) -> set[FrameKind]:
        """Kinds of frame of which a graph is replayed at the present front."""
        return {
            kind
            for (kind, front), one in self._recordings.items()
            if front == self.front and one.captured
        }

    def close(self) -> None:
        """All it holds on the device and for it is given back, references included."""
        for recording in self._recordings.values():
            recording.close()
        for tensor in (tensor for one in self.references for tensor in one.tensors):
            tensor.close()
        self._buffers.close()

    def _recording(self, kind: FrameKind) -> Recording:
        key = (kind, self.front)
        if key not in self._recordings:
            body = partial(self._enqueue, *key)
            self._recordings[key] = self._backend.recording(f"{kind} frame", body)
        return self._recordings[key]

    def _enqueue(self, kind: FrameKind, front: int) -> None:
        """All of a frame's work, at addresses that only depend on the arguments."""
        mark, marks, at = self._backend.device.mark, self._buffers.marks, self._buffers.at
        mark(marks[0])
        self._tower.embed({PIXEL_VALUES: at[PIXEL_VALUES]}, {HIDDEN: at[HIDDENS[0]]})
        hidden = at[HIDDENS[0]]
        for block in range(self._tower.spec.blocks):
            there = at[HIDDENS[(block + 1) % 2]]
            if kind == "reference":
                self._renew(block, self.references[1 - front], hidden, there)
            else:
                self._reuse(block, self.references[front], hidden, there)
            hidden = there
        mark(marks[1])
        self._tower.project({HIDDEN: hidden}, {TOKENS: at[TOKENS]})
        mark(marks[2])
        if self._prune is not None:
            self._prune(
                {
                    TOKENS: at[TOKENS],
                    HISTORY_MEAN: at[HISTORY_MEAN],
                    HISTORY_COUNT: at[HISTORY_COUNT],
                    COUNT: self._buffers.counts[self._kept],
                },
                {name: at[name] for name in (KEPT, KEPT_INDICES, FRAME_MEAN)},
            )
        mark(marks[3])

    def _renew(
        self, block: int, back: References, hidden: DeviceTensor, there: DeviceTensor
    ) -> None:
        none = self._buffers
        self._tower.keys[block]({HIDDEN: hidden, REF_KEY: none.no_heads}, {KEY: back.key[block]})
        self._tower.updates[block](
            {
                HIDDEN: hidden,
                KEY: back.key[block],
                REF_VALUE: none.no_heads,
                REF_RESIDUAL: none.no_rows,
                INDICES: none.all_tokens,
            },
            {HIDDEN_OUT: there, VALUE: back.value[block], RESIDUAL: back.residual[block]},
        )

    def _reuse(
        self, block: int, front: References, hidden: DeviceTensor, there: DeviceTensor
    ) -> None:
        at = self._buffers.at
        selects = block == 0 or self._settings.selection == "layerwise"
        indices = at[FIRST_INDICES]
        fresh = {KEY: at[KEY], SCORE: at[SCORE]} if selects else {KEY: at[KEY]}
        self._tower.keys[block]({HIDDEN: hidden, REF_KEY: front.key[block]}, fresh)
        if self._settings.selection == "layerwise" and block > 0:
            indices = at[LATER_INDICES]
        if selects:
            score = {SCORE: at[SCORE], COUNT: self._buffers.counts[self._recomputed]}
            self._tower.select(score, {INDICES: indices})
        self._tower.updates[block](
            {
                HIDDEN: hidden,
                KEY: at[KEY],
                REF_VALUE: front.value[block],
                REF_RESIDUAL: front.residual[block],
                INDICES: indices,
            },
            {HIDDEN_OUT: there},
        )

    def _outcome(self, kind: FrameKind) -> DeviceOutcome:
        spec, buffers = self._tower.spec, self._buffers
        everything = self._prune is None
        recomputed = (
            buffers.on_host(FIRST_INDICES)
            if kind == "reuse"
            else np.arange(spec.tokens, dtype=np.int64)
        )
        kept = (
            np.arange(spec.pooled, dtype=np.int64) if everything else buffers.on_host(KEPT_INDICES)
        )
        elapsed_ms = self._backend.device.elapsed_ms
        spans = zip(("vision", "project", "prune"), buffers.marks, buffers.marks[1:], strict=False)
        return DeviceOutcome(
            recomputed=recomputed,
            tokens=buffers.on_host(TOKENS if everything else KEPT),
            kept=kept,
            frame_mean=None if everything else buffers.on_host(FRAME_MEAN),
            gpu_ms={name: elapsed_ms(start, end) for name, start, end in spans},
        )
