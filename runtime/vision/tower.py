"""A bundle's vision graphs, loaded on a backend: shared by every stream, holding none of their
state."""

from __future__ import annotations

from stc.engines.eager import EagerRunner
from stc.engines.engine import Backend, Engine, Runner
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.engines.tensorrt.captured import CapturedRunner
from stc.manifest import Precision, VisionSpec
from stc.method.family import stream_programs
from stc.method.graphs import PRUNERS, vision_graphs
from stc.ports import NETWORK_DTYPES
from stc.settings import Settings


class VisionTower:
    """The engines of one vision tower.

    Raises EngineError when a graph cannot be loaded.
    """

    def __init__(self, backend: Backend, spec: VisionSpec, precision: Precision) -> None:
        self.backend = backend
        self.spec = spec
        self.precision: Precision = precision
        self.dtype = NETWORK_DTYPES[precision]
        self._engines: dict[str, Engine] = {}
        for graph in vision_graphs(spec.blocks):
            if graph not in PRUNERS:
                self.engine(graph)

    def engine(self, graph: str) -> Engine:
        """The engine of `graph`; pruners are loaded when first asked for."""
        if graph not in self._engines:
            self._engines[graph] = self.backend.load(graph)
        return self._engines[graph]

    def runner(self, settings: Settings, *, captured: bool = True) -> Runner:
        """What runs the frames of one stream: a program for each kind of frame, named by it.

        On TensorRT frames are CUDA graphs, unless `captured` is False. Raises EngineError when an
        engine for these settings was not built, with the command that builds it, or there is not
        enough memory, and SettingsError when the settings do not fit the model.
        """
        programs = stream_programs(self.spec, self.precision, settings)
        if not (captured and isinstance(self.backend, TensorRtBackend)):
            return EagerRunner(self.backend, programs, self.engine)
        flags = {
            "M": f"--recompute-ratio {settings.recompute_ratio:g}",
            "k": f"--budget {settings.kept(self.spec.pooled)}",
        }
        return CapturedRunner(self.backend, programs, self.engine, flags)

    def close(self) -> None:
        """The backend's device is given back, with all that sessions of this tower hold on it."""
        self.backend.close()
