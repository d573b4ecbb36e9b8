# ruff: noqa: N802 (the names are TensorRT's)
"""A mock of TensorRT's runtime: engines whose graphs are numpy functions, run on a FakeCuda.

A context computes from the addresses it had when it was enqueued, at the time the stream gets
there. It returns False where TensorRT does: an address, a shape or its scratch memory missing, a
first run inside a capture. It scribbles over its scratch memory, and reads its outputs back, so
memory shared wrongly shows in the results.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.engines.library.plan import Sizes, shape_at
from stc.engines.library.targets import Flavour, TensorRt
from stc.manifest import GraphEntry
from tests.fake_cuda import FakeCuda

VERSION = "10.16.2"
Array = NDArray[Any]
Graph = Callable[..., tuple[Array, ...]]


@dataclass
class Plan:
    """What an engine file of the mock says."""

    graph: str
    profiles: list[Sizes]
    baked: int | None
    scratch_bytes: int

    def serialized(self) -> bytes:
        return json.dumps(vars(self)).encode()


@dataclass
class FakeTensorRt:
    """The module `tensorrt` or `tensorrt_rtx`: `graphs` are the functions, `entries` their ports.

    refuse: called with graph and "capture" or "run"; True makes the context return False.
    refuse_call: the context's method that returns False whatever it is given.
    read: what an engine file says; the mock's own are JSON.
    loaded: the profiles of every engine file that was loaded, by graph.
    compiled: the engines whose kernels a context of TensorRT-RTX had to compile.
    """

    cuda: FakeCuda
    graphs: Mapping[str, Graph]
    entries: Mapping[str, GraphEntry]
    refuse: Callable[[str, str], bool] = lambda graph, where: False
    capturable: bool = True
    read: Callable[[bytes], Plan] = lambda content: Plan(**json.loads(content))
    runs: list[str] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)
    loaded: dict[str, list[list[Sizes]]] = field(default_factory=dict)
    refuse_call: str = ""
    logger: Any = None
    __version__: str = VERSION

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1

        def __init__(self) -> None:
            pass

    class ExecutionContextAllocationStrategy(enum.Enum):
        STATIC = 0
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(enum.Enum):
        LAZY = 0
        EAGER = 1

    class TensorIOMode(enum.Enum):
        INPUT = 1
        OUTPUT = 2

    class TensorLocation(enum.Enum):
        DEVICE = 0
        HOST = 1

    class DataType(enum.Enum):
        FLOAT = "float32"
        HALF = "float16"
        INT64 = "int64"

    def Runtime(self, logger: Any) -> FakeRuntime:
        self.logger = logger
        return FakeRuntime(self, logger)

    def flavoured(self, flavour: Flavour) -> TensorRt:
        """It as the engines know it."""
        return TensorRt(flavour, self)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
        try:
            plan = self._trt.read(content)
            self._trt.loaded.setdefault(plan.graph, []).append(plan.profiles)
            return FakeEngine(self._trt, plan)
        except ValueError:
            self._logger.log(FakeTensorRt.ILogger.Severity.ERROR, "Magic tag does not match")
            return None


class FakeEngine:
    def __init__(self, trt: FakeTensorRt, plan: Plan) -> None:
        self.trt, self.plan = trt, plan
        entry = trt.entries[plan.graph]
        self.inputs = [port for port in entry.inputs if port.name != "count"]
        self.outputs = list(entry.outputs)
        self.ports = {port.name: port for port in [*self.inputs, *self.outputs]}
        self.device_memory_size_v2 = plan.scratch_bytes
        self.num_io_tensors = len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> FakeTensorRt.TensorIOMode:
        modes = FakeTensorRt.TensorIOMode
        return modes.INPUT if self.ports[name] in self.inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> FakeTensorRt.DataType:
        return FakeTensorRt.DataType(self.ports[name].dtype)

    def get_tensor_location(self, name: str) -> FakeTensorRt.TensorLocation:
        return FakeTensorRt.TensorLocation.DEVICE

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, how: Any) -> FakeContext:
        if isinstance(how, FakeRuntimeConfig):
            # Another one compiles in the background, and a capture may come too early.
            strategies = FakeTensorRt.DynamicShapesKernelSpecializationStrategy
            assert how.dynamic_shapes_kernel_specialization_strategy is strategies.EAGER
            kernel = f"{self.plan.graph} {self.plan.profiles}"
            if how.cache is None or kernel not in how.cache.kernels:
                self.trt.compiled.append(kernel)
            if how.cache is not None:
                how.cache.kernels.add(kernel)
            return CapturableContext(self, how.strategy)
        return FakeContext(self, how)


class FakeRuntimeCache:
    """Compiled kernels, of TensorRT-RTX of VERSION."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([VERSION, *sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            version, *kernels = json.loads(blob)
        except ValueError:
            return False
        if version != VERSION:
            return False
        self.kernels.update(kernels)
        return True


class FakeRuntimeConfig:
    cache: FakeRuntimeCache | None = None
    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeContext:
    def __init__(self, engine: FakeEngine, strategy: Any) -> None:
        assert strategy is FakeTensorRt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._engine = engine
        self._profile: Sizes | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, -1)
        self._ran = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        if index >= len(self._engine.plan.profiles) or self._refused(
            "set_optimization_profile_async"
        ):
            return False
        self._profile = self._engine.plan.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        port = self._engine.ports[name]
        if (
            self._profile is None
            or shape != shape_at(port.shape, self._profile)
            or self._refused("set_input_shape")
        ):
            return False
        self._shapes[name] = shape
        return True

    def infer_shapes(self) -> list[str]:
        if self._refused("infer_shapes"):
            return [port.name for port in self._engine.inputs]
        return [port.name for port in self._engine.inputs if port.name not in self._shapes]

    def _refused(self, method: str) -> bool:
        return method == self._engine.trt.refuse_call

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self._engine.ports or self._refused("set_tensor_address"):
            return False
        self._addresses[name] = address
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        engine, trt = self._engine, self._engine.trt
        where = "capture" if trt.cuda.capturing(stream) else "run"
        unready = (
            self.infer_shapes()
            or set(self._addresses) != set(engine.ports)
            or self._scratch[1] < engine.device_memory_size_v2
            or (where == "capture" and not self._ran)
        )
        if unready or trt.refuse(engine.plan.graph, where):
            trt.logger.log(trt.ILogger.Severity.ERROR, f"{engine.plan.graph} is not ready")
            return False
        self._ran = True
        # What is captured are these addresses, whatever is bound later.
        addresses, scratch = dict(self._addresses), self._scratch
        trt.cuda.enqueue(stream, lambda: self._compute(addresses, scratch))
        return True

    def _compute(self, addresses: dict[str, int], scratch: tuple[int, int]) -> None:
        engine, cuda = self._engine, self._engine.trt.cuda
        engine.trt.runs.append(engine.plan.graph)
        inputs = [self._view(port.name, addresses).copy() for port in engine.inputs]
        cuda.at(*scratch)[:] = 0xFF
        if engine.plan.baked is not None:
            inputs.append(np.array([engine.plan.baked], np.int64))
        results = engine.trt.graphs[engine.plan.graph](*inputs)
        computed = {
            port.name: result.astype(port.dtype)
            for port, result in zip(engine.outputs, results, strict=True)
        }
        for name, values in computed.items():
            self._view(name, addresses)[...] = values
        intact = all(
            np.array_equal(self._view(name, addresses), values, equal_nan=True)
            for name, values in computed.items()
        )
        if not intact:
            for name in computed:
                view = self._view(name, addresses)
                view[...] = np.nan if view.dtype.kind == "f" else -1

    def _view(self, name: str, addresses: dict[str, int]) -> Array:
        port = self._engine.ports[name]
        assert self._profile is not None
        shape, dtype = shape_at(port.shape, self._profile), np.dtype(port.dtype)
        content = self._engine.trt.cuda.at(addresses[name], int(np.prod(shape)) * dtype.itemsize)
        return content.view(dtype).reshape(shape)


class CapturableContext(FakeContext):
    """TensorRT-RTX's, which tells whether it can be captured."""

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.trt.capturable
