"""A stream session whose frames are one CUDA graph each; see `stc.runtime.device_frame`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.engines.device import Device
from stc.engines.device_array import on_device
from stc.engines.engine import Tensor
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.errors import DeviceError, EngineError
from stc.runtime.device_frame import DeviceFrame, DeviceOutcome
from stc.runtime.frame import Frame
from stc.runtime.references import References
from stc.runtime.report import FrameKind, FrameReport
from stc.runtime.session import StreamSession
from stc.runtime.stream_language import StreamLanguage
from stc.runtime.tower import VisionTower
from stc.settings import Settings


class DeviceSession(StreamSession):
    """A StreamSession on TensorRT; sessions share the tower's engines, stream and scratch memory.

    Reports give GPU time by stage in `stage_ms` and in all in `engine_ms`. A DeviceError ends the
    session: its memory is given back, and whatever is asked of it later is refused with the cause.
    The next session works; after a lost device on a tower opened anew, where the driver could reset
    it. Work on the GPU holds the backend's lock, so that another thread may run another session or
    read an answer meanwhile. Of the indices that graphs select, those of the first block and of the
    kept tokens are checked, which come to the host anyway; later blocks' stay on the GPU.

    Raises EngineError when an engine for these settings was not built, with the command that builds
    it, DeviceError when there is not enough memory, and SettingsError as StreamSession.
    """

    WARM_UP_INTERVALS = 4
    """Reference intervals after which every frame is a replay: two runs of each kind of frame at
    each of the two sets of references."""

    def __init__(
        self,
        tower: VisionTower,
        settings: Settings,
        language: StreamLanguage | None = None,
    ) -> None:
        if not isinstance(tower.backend, TensorRtBackend):
            raise TypeError(f"a tower on {tower.backend.name}")
        with tower.backend.lock:
            _prepare_engines(tower, tower.backend, settings)
            super().__init__(tower, settings, language)
            self._backend = tower.backend
            self._sets = (self._vision.references, References(tower))
            self._frame = DeviceFrame(tower, tower.backend, settings, self._sets)
        self._outcome: DeviceOutcome | None = None
        self._ended: EngineError | None = None
        self._prepare = self._preprocess
        self._preprocess = self._prepared  # type: ignore[assignment]

    @property
    def references_bytes(self) -> int:
        """Bytes both sets of references hold."""
        return sum(one.size_bytes for one in self._sets)

    @property
    def device(self) -> Device:
        """The device it runs on."""
        return self._backend.device

    @property
    def captured(self) -> set[FrameKind]:
        """Kinds of frame that are replayed from a CUDA graph."""
        return self._frame.captured

    def push(self, frame: Frame) -> FrameReport:
        """The report of `frame`; see StreamSession.

        `frame.rgb` may also be pixel values [3, Hpx, Wpx] of the network's dtype that lie on this
        GPU already (DLPack or `__cuda_array_interface__`); they are read where they lie.
        """
        with self._lock:
            if self._ended is not None:
                raise EngineError("session", f"was ended ({self._ended})", "", "open a new one")
            try:
                report = super().push(frame)
            except DeviceError as error:
                self._ended = error
                self.close()
                raise
            assert self._outcome is not None
            gpu_ms = self._outcome.gpu_ms
            stage_ms = {**report.stage_ms, **gpu_ms}
            return replace(report, stage_ms=stage_ms, engine_ms=sum(gpu_ms.values()))

    def close(self) -> None:
        """Its device memory is given back. A device that is lost is closed with all it holds."""
        with self._lock, self._backend.lock:
            if self._backend.device.lost:
                self._backend.close()
            self._frame.close()
            for tensor in (*self._vision.tensors, self._kept_count):
                tensor.close()
            if self._ended is None:
                self._ended = EngineError("session", "was closed")

    def _prepared(self, rgb: Any, *, out: NDArray[np.floating] | None = None) -> Any:
        return rgb if on_device(rgb) else self._prepare(rgb, out=out)

    def _tower(
        self, pixel_values: NDArray[np.floating], kind: FrameKind
    ) -> tuple[Tensor, NDArray[np.int64]]:
        if self._vision.observer is not None:
            return super()._tower(pixel_values, kind)
        with self._backend.lock:
            self._outcome = self._frame.run(pixel_values, kind, self._memory)
        self._vision.references = self._sets[self._frame.front]
        self._vision.references.valid = True
        return None, self._outcome.recomputed

    def _project(self, hidden: Tensor) -> Tensor:
        return super()._project(hidden) if self._vision.observer is not None else None

    def _prune(
        self, tokens: Tensor
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32] | None]:
        if self._vision.observer is not None:
            return super()._prune(tokens)
        assert self._outcome is not None
        return self._outcome.tokens, self._outcome.kept, self._outcome.frame_mean

    def _name_culprit(
        self, pixel_values: NDArray[np.floating], kind: FrameKind, frame_index: int
    ) -> None:
        with self._backend.lock:
            super()._name_culprit(pixel_values, kind, frame_index)


def _prepare_engines(tower: VisionTower, backend: TensorRtBackend, settings: Settings) -> None:
    """Every engine that frames of `settings` need is loaded. Raises EngineError when one is not."""
    spec = tower.spec
    kept = settings.kept(spec.pooled)
    sizes = [{"M": spec.tokens}]
    flags = f"--recompute-ratio {settings.recompute_ratio:g}"
    if settings.reference_interval > 1:
        fewer = {"M": settings.recomputed(spec.tokens)}
        sizes = [fewer, *sizes]
        backend.prepare(contracts.SELECT, [fewer], flags)
    for update in tower.updates:
        backend.prepare(update.name, sizes, flags)
    if kept < spec.pooled:
        backend.prepare(tower.prune(settings.pruner).name, [{"k": kept}], f"--budget {kept}")
