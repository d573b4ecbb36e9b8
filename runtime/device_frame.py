"""One stream's frames on a device: from pixel values to kept tokens without waiting in between.

All memory is made once, so every frame works at the same addresses, and a frame of each kind is
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

from stc import contracts
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
from stc.engines.device_array import on_device, read_array
from stc.engines.device_tensor import DeviceTensor
from stc.engines.recording import Recording
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.errors import EngineError
from stc.pruner import PrunerMemory
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
        spec, device = tower.spec, backend.device
        self.front = 0
        self.references = references
        self._tower = tower
        self._backend = backend
        self._settings = settings
        self._recomputed = settings.recomputed(spec.tokens)
        self._kept = settings.kept(spec.pooled)
        self._prune = tower.prune(settings.pruner) if self._kept < spec.pooled else None
        self._recordings: dict[tuple[FrameKind, int], Recording] = {}
        self._marks = [device.event() for _ in range(4)]
        heads, rows = (spec.heads, spec.tokens, spec.head_width), (spec.tokens, spec.width)
        memory = contracts.memory_width(settings.pruner, spec.language_width)
        network, whole, real = tower.dtype, np.dtype(np.int64), np.dtype(np.float32)
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            PIXEL_VALUES: ((3, spec.image_size, spec.image_size), network),
            "hidden_0": (rows, network),
            "hidden_1": (rows, network),
            KEY: (heads, network),
            SCORE: ((spec.tokens,), real),
            "first_indices": ((self._recomputed,), whole),
            "later_indices": ((self._recomputed,), whole),
            TOKENS: ((spec.pooled, spec.language_width), network),
            HISTORY_MEAN: ((memory,), real),
            HISTORY_COUNT: ((1,), real),
            KEPT: ((self._kept, spec.language_width), network),
            KEPT_INDICES: ((self._kept,), whole),
            FRAME_MEAN: ((memory,), real),
        }
        self._on_device = {name: backend.empty(*shape) for name, shape in shapes.items()}
        # Stand-ins for references where every token is computed and none is read.
        self._no_heads = backend.to_device(np.zeros(heads, network))
        self._no_rows = backend.to_device(np.zeros(rows, network))
        self._all_tokens = backend.to_device(np.arange(spec.tokens, dtype=np.int64))
        self._counts = {
            count: backend.to_device(np.array([count], np.int64))
            for count in (self._recomputed, self._kept)
        }
        up = (PIXEL_VALUES, HISTORY_MEAN, HISTORY_COUNT)
        down = ("first_indices", TOKENS, KEPT, KEPT_INDICES, FRAME_MEAN)
        self._on_host = {name: device.pinned(*shapes[name]) for name in (*up, *down)}

    def run(self, pixel_values: Any, kind: FrameKind, memory: PrunerMemory) -> DeviceOutcome:
        """The frame's outcome; a reference frame's references are the front from then on.

        `pixel_values` [3, Hpx, Wpx] in the network's dtype, on the host or on this GPU. Raises
        EngineError; the front is as before then.
        """
        device = self._backend.device
        self._upload_pixels(pixel_values)
        self._upload(HISTORY_MEAN, memory.mean)
        self._upload(HISTORY_COUNT, np.array([memory.count], np.float32))
        self._recording(kind).run()
        wanted = [TOKENS] if self._prune is None else [KEPT, KEPT_INDICES, FRAME_MEAN]
        if kind == "reuse":
            wanted.append("first_indices")
        for name in wanted:
            device.download(self._on_host[name], self._on_device[name].address)
        device.synchronize()
        if kind == "reference":
            self.front = 1 - self.front
        return self._outcome(kind)

    @property
    def captured(self) -> set[FrameKind]:
        """Kinds of frame of which a graph is replayed at the present front."""
        return {kind for (kind, front), one in self._recordings.items() if one.captured}

    def close(self) -> None:
        """Its device memory is given back, references included."""
        own = [self._no_heads, self._no_rows, self._all_tokens, *self._counts.values()]
        for references in self.references:
            own += [*references.key, *references.value, *references.residual]
        for tensor in [*own, *self._on_device.values()]:
            tensor.close()
        self._recordings.clear()

    def _upload_pixels(self, pixel_values: Any) -> None:
        if not on_device(pixel_values):
            self._upload(PIXEL_VALUES, pixel_values)
            return
        tensor, device = self._on_device[PIXEL_VALUES], self._backend.device
        found = read_array(pixel_values, device)
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            got = f"is {found.dtype} {found.shape}"
            raise EngineError("frame on the device", got, f"{tensor.dtype} {tensor.shape}")
        device.copy(tensor.address, found.address, tensor.size_bytes)

    def _upload(self, name: str, values: NDArray[Any]) -> None:
        # The last frame was waited for, so nothing reads the host's buffer any more.
        np.copyto(self._on_host[name], values)
        self._backend.device.upload(self._on_device[name].address, self._on_host[name])

    def _recording(self, kind: FrameKind) -> Recording:
        key = (kind, self.front)
        if key not in self._recordings:
            body = partial(self._enqueue, *key)
            self._recordings[key] = self._backend.recording(f"{kind} frame", body)
        return self._recordings[key]

    def _enqueue(self, kind: FrameKind, front: int) -> None:
        """All of a frame's work, at addresses that only depend on the arguments."""
        mark, marks, at = self._backend.device.mark, self._marks, self._on_device
        mark(marks[0])
        self._tower.embed({PIXEL_VALUES: at[PIXEL_VALUES]}, {HIDDEN: at["hidden_0"]})
        hidden = at["hidden_0"]
        for block in range(self._tower.spec.blocks):
            there = at[f"hidden_{(block + 1) % 2}"]
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
                    COUNT: self._counts[self._kept],
                },
                {name: at[name] for name in (KEPT, KEPT_INDICES, FRAME_MEAN)},
            )
        mark(marks[3])

    def _renew(
        self, block: int, back: References, hidden: DeviceTensor, there: DeviceTensor
    ) -> None:
        self._tower.keys[block]({HIDDEN: hidden, REF_KEY: self._no_heads}, {KEY: back.key[block]})
        self._tower.updates[block](
            {
                HIDDEN: hidden,
                KEY: back.key[block],
                REF_VALUE: self._no_heads,
                REF_RESIDUAL: self._no_rows,
                INDICES: self._all_tokens,
            },
            {HIDDEN_OUT: there, VALUE: back.value[block], RESIDUAL: back.residual[block]},
        )

    def _reuse(
        self, block: int, front: References, hidden: DeviceTensor, there: DeviceTensor
    ) -> None:
        at = self._on_device
        selects = block == 0 or self._settings.selection == "layerwise"
        indices = at["first_indices"]
        fresh = {KEY: at[KEY], SCORE: at[SCORE]} if selects else {KEY: at[KEY]}
        self._tower.keys[block]({HIDDEN: hidden, REF_KEY: front.key[block]}, fresh)
        if self._settings.selection == "layerwise" and block > 0:
            indices = at["later_indices"]
        if selects:
            score = {SCORE: at[SCORE], COUNT: self._counts[self._recomputed]}
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
        spec, host, device = self._tower.spec, self._on_host, self._backend.device
        everything = self._prune is None
        recomputed = (
            host["first_indices"].copy()
            if kind == "reuse"
            else np.arange(spec.tokens, dtype=np.int64)
        )
        kept = np.arange(spec.pooled, dtype=np.int64) if everything else host[KEPT_INDICES].copy()
        spans = zip(("vision", "project", "prune"), self._marks, self._marks[1:], strict=False)
        return DeviceOutcome(
            recomputed=recomputed,
            tokens=host[TOKENS if everything else KEPT].copy(),
            kept=kept,
            frame_mean=None if everything else host[FRAME_MEAN].copy(),
            gpu_ms={name: device.elapsed_ms(start, end) for name, start, end in spans},
        )
