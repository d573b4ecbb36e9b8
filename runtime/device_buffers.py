"""The memory one stream's frames work in on a device: made once, at addresses that never change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import (
    FRAME_MEAN,
    HISTORY_COUNT,
    HISTORY_MEAN,
    KEPT,
    KEPT_INDICES,
    KEY,
    PIXEL_VALUES,
    SCORE,
    TOKENS,
)
from stc.engines.device_array import on_device, read_array
from stc.engines.pinned_array import PinnedArray
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.errors import EngineError
from stc.runtime.tower import VisionTower
from stc.settings import Settings

HIDDENS = ("hidden_0", "hidden_1")
"""A block reads one and writes the other."""

FIRST_INDICES, LATER_INDICES = "first_indices", "later_indices"
"""What block 0 selects, and what every later block selects for itself."""

_UP = (PIXEL_VALUES, HISTORY_MEAN, HISTORY_COUNT)
_DOWN = (FIRST_INDICES, TOKENS, KEPT, KEPT_INDICES, FRAME_MEAN)


class DeviceBuffers:
    """Tensors by name (`at`), arrays of the same names on the host, and four marks in time.

    no_heads, no_rows: stand-ins for references where every token is computed and none is read.
    counts: M and k, for engines that have them baked in.

    Raises DeviceError when there is not enough memory, SettingsError for a budget over n.
    """

    def __init__(self, tower: VisionTower, backend: TensorRtBackend, settings: Settings) -> None:
        spec, self._device = tower.spec, backend.device
        recomputed, kept = settings.recomputed(spec.tokens), settings.kept(spec.pooled)
        heads, rows = (spec.heads, spec.tokens, spec.head_width), (spec.tokens, spec.width)
        memory = contracts.memory_width(settings.pruner, spec.language_width)
        network, whole, real = tower.dtype, np.dtype(np.int64), np.dtype(np.float32)
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            PIXEL_VALUES: ((3, spec.image_size, spec.image_size), network),
            **dict.fromkeys(HIDDENS, (rows, network)),
            KEY: (heads, network),
            SCORE: ((spec.tokens,), real),
            FIRST_INDICES: ((recomputed,), whole),
            LATER_INDICES: ((recomputed,), whole),
            TOKENS: ((spec.pooled, spec.language_width), network),
            HISTORY_MEAN: ((memory,), real),
            HISTORY_COUNT: ((1,), real),
            KEPT: ((kept, spec.language_width), network),
            KEPT_INDICES: ((kept,), whole),
            FRAME_MEAN: ((memory,), real),
        }
        self.at = {name: backend.empty(*shape) for name, shape in shapes.items()}
        self.no_heads = backend.to_device(np.zeros(heads, network))
        self.no_rows = backend.to_device(np.zeros(rows, network))
        self.all_tokens = backend.to_device(np.arange(spec.tokens, dtype=np.int64))
        self.counts = {
            count: backend.to_device(np.array([count], np.int64)) for count in (recomputed, kept)
        }
        self._on_host = {name: PinnedArray(self._device, *shapes[name]) for name in (*_UP, *_DOWN)}
        self.marks = [self._device.event() for _ in range(4)]

    def upload(self, name: str, values: NDArray[Any]) -> None:
        """Enqueue: tensor `name` holds `values`. The last frame must have been waited for."""
        host = self._on_host[name].values
        np.copyto(host, values)
        self._device.upload(self.at[name].address, host)

    def upload_pixels(self, pixel_values: Any) -> None:
        """Enqueue: the frame's pixel values, from the host or from where they lie on this GPU.

        Raises EngineError when those on the GPU have another shape or dtype.
        """
        if not on_device(pixel_values):
            self.upload(PIXEL_VALUES, pixel_values)
            return
        tensor = self.at[PIXEL_VALUES]
        found = read_array(pixel_values, self._device)
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            got = f"is {found.dtype} {found.shape}"
            raise EngineError(
                "frame on the device",
                got,
                f"{tensor.dtype} {tensor.shape}",
                "preprocess it as the network's preprocessor does, or pass an RGB image",
            )
        self._device.copy(tensor.address, found.address, tensor.size_bytes)

    def download(self, names: Iterable[str]) -> None:
        """All work is done and `on_host` has the tensors `names`."""
        for name in names:
            self._device.download(self._on_host[name].values, self.at[name].address)
        self._device.synchronize()

    def on_host(self, name: str) -> NDArray[Any]:
        """The values of tensor `name` when it was downloaded last, the caller's own."""
        values: NDArray[Any] = self._on_host[name].values.copy()
        return values

    def close(self) -> None:
        """All of it is given back."""
        constants = (self.no_heads, self.no_rows, self.all_tokens, *self.counts.values())
        for tensor in (*constants, *self.at.values()):
            tensor.close()
        # Giving device memory back waits for all work, so no copy is under way any more.
        for array in self._on_host.values():
            array.close()
        for mark in self.marks:
            self._device.free_event(mark)
