"""A device that computes nothing and counts what the host asks of it.

The loops that run frames and tokens on a GPU run on it as they are, with engines that are planned
and need not exist, on a machine without a GPU: so what a frame or a token costs the host is counted
where it is done, and changes with it. What comes down from the device are the whole numbers from 0
on: finite numbers, and indices in order, which is all that is checked of a frame.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stc.bundles.bundle import Bundle
from stc.contracts import COUNT
from stc.engines.gpu.cuda import Cuda
from stc.engines.gpu.device import Device
from stc.engines.library.library import EngineEntry, EngineLibrary, Stamp
from stc.engines.library.plan import EngineSpec, Sizes
from stc.engines.library.targets import SEVERAL_PROFILES_SINCE, TensorRt
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.manifest import FileEntry, GraphEntry

_VERSION = SEVERAL_PROFILES_SINCE
"""So each size that an engine is planned for is a profile of its own."""
_KINDS = SimpleNamespace(
    cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
)


class DataType(enum.Enum):
    """Of a tensor."""

    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"


@dataclass
class Asked:
    """What the host asked of the device.

    runs: engines and their sizes, one after the other. copied_bytes: within the device.
    """

    runs: list[tuple[str, Sizes]] = field(default_factory=list)
    enqueues: int = 0
    copies: int = 0
    copied_bytes: int = 0
    synchronisations: int = 0
    allocations: int = 0
    frees: int = 0

    @property
    def calls(self) -> int:
        """All of them together."""
        return self.enqueues + self.copies + self.synchronisations + self.allocations + self.frees


class CountedDevice:
    """Counts, while `counting`, into what that yields.

    A CUDA graph that is replayed is one enqueue, and what it holds runs: its engines, and the bytes
    that it copies. What is captured into one does not run, and is not counted.
    """

    def __init__(self) -> None:
        self.asked = Asked()
        self._captured: Asked | None = None
        self._graphs: dict[int, Asked] = {}

    @contextmanager
    def counting(self) -> Iterator[Asked]:
        """What is asked for in the body, complete when it has ended."""
        before, self.asked = self.asked, Asked()
        try:
            yield self.asked
        finally:
            self.asked = before

    def ran(self, graph: str, sizes: Sizes) -> None:
        """An engine was enqueued."""
        self._into.runs.append((graph, sizes))
        self._into.enqueues += 1

    def count(self, what: str) -> None:
        """A call of the host that is counted as `what`."""
        setattr(self._into, what, getattr(self._into, what) + 1)

    def copied(self, size: int) -> None:
        """So many bytes were copied within the device."""
        self._into.copied_bytes += size

    def begin(self) -> None:
        """What is asked for from here on is captured."""
        self._captured = Asked()

    def end(self, graph: int) -> None:
        """What was captured is called `graph`."""
        assert self._captured is not None
        self._graphs[graph], self._captured = self._captured, None

    def instantiate(self, graph: int, executable: int) -> None:
        """`executable` replays `graph`."""
        self._graphs[executable] = self._graphs[graph]

    def launch(self, executable: int) -> None:
        """A graph was replayed."""
        self.count("enqueues")
        held = self._graphs[executable]
        self.asked.runs += held.runs
        self.asked.copied_bytes += held.copied_bytes

    @property
    def _into(self) -> Asked:
        return self.asked if self._captured is None else self._captured


class _Runtime:
    """The functions of cuda.bindings.runtime, which succeed."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815
    cudaEventRecordExternal = 1  # noqa: N815
    cudaMemcpyKind = _KINDS  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, device: CountedDevice) -> None:
        self._device = device
        self._pinned: dict[int, Any] = {}
        self._next = 1 << 40

    def __getattr__(self, name: str) -> Callable[..., tuple[int, int]]:
        """Whatever else is called makes something: a stream, an event, a graph."""
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *_: (0, self._made())

    def _made(self, size: int = 1) -> int:
        self._next += -(-size // 256) * 256
        return self._next

    def cudaMalloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        self._device.count("allocations")
        made = self._next
        self._made(size)
        return 0, made

    def cudaFree(self, address: int) -> tuple[int]:  # noqa: N802
        self._device.count("frees")
        return (0,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:  # noqa: N802
        self._device.count("allocations")
        buffer = (ctypes.c_byte * size)()
        self._pinned[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        self._device.count("frees")
        del self._pinned[address]
        return (0,)

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, 1 << 40, 1 << 40

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[int]:
        self._device.count("copies")
        if kind == _KINDS.cudaMemcpyDeviceToHost:
            numbers = np.arange(-(-size // 8), dtype=np.int64)
            ctypes.memmove(target, numbers.ctypes.data, size)
        if kind == _KINDS.cudaMemcpyDeviceToDevice:
            self._device.copied(size)
        return (0,)

    def cudaMemcpy2DAsync(self, *arguments: Any) -> tuple[int]:  # noqa: N802
        *_, width, height, _, _ = arguments
        self._device.count("copies")
        self._device.copied(width * height)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        self._device.count("synchronisations")
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self._device.begin()
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        graph = self._made()
        self._device.end(graph)
        return 0, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:  # noqa: N802
        executable = self._made()
        self._device.instantiate(graph, executable)
        return 0, executable

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:  # noqa: N802
        self._device.launch(executable)
        return (0,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:  # noqa: N802
        return 0, 0.0


class _Context:
    """An execution context of a planned engine: it takes everything."""

    def __init__(self, planned: _Engine) -> None:
        self._planned = planned
        self._sizes: Sizes = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._sizes = self._planned.spec.profiles[profile]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def set_device_memory(self, address: int, size: int) -> None: ...

    def set_tensor_address(self, name: str, address: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self._planned.device.ran(self._planned.spec.graph, self._sizes)
        return True


class _Engine:
    """A planned engine, with the ports of its graph."""

    device_memory_size_v2 = 1

    def __init__(self, spec: EngineSpec, graph: GraphEntry, device: CountedDevice) -> None:
        self.spec = spec
        self.device = device
        self._ports = [
            *((port, True) for port in graph.inputs if port.name != COUNT),
            *((port, False) for port in graph.outputs),
        ]
        self._kinds = {port.name: (port.dtype, entry) for port, entry in self._ports}
        self.num_io_tensors = len(self._ports)

    def get_tensor_name(self, index: int) -> str:
        return self._ports[index][0].name

    def get_tensor_mode(self, name: str) -> bool:
        return self._kinds[name][1]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._kinds[name][0])

    def get_tensor_location(self, name: str) -> bool:
        return True

    def create_execution_context(self, strategy: object) -> _Context:
        return _Context(self)


class _Planned(EngineLibrary):
    """A library of engines that were never built: an engine's bytes are its file's name."""

    def read(self, entry: EngineEntry) -> bytes:
        return entry.file.path.encode()


def counted_backend(
    bundle: Bundle, specs: Sequence[EngineSpec]
) -> tuple[TensorRtBackend, CountedDevice]:
    """The backend of the engines `specs` of `bundle` on a device that counts, and that device."""
    device, graphs = CountedDevice(), bundle.manifest.graphs
    engines = {spec.stem: _Engine(spec, graphs[spec.graph], device) for spec in specs}
    module = SimpleNamespace(
        __version__=_VERSION,
        ILogger=_logger(),
        Runtime=lambda _: SimpleNamespace(
            deserialize_cuda_engine=lambda content: engines[content.decode()]
        ),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0),
        DataType=DataType,
        TensorIOMode=SimpleNamespace(INPUT=True),
        TensorLocation=SimpleNamespace(DEVICE=True),
    )
    entries: dict[str, list[EngineEntry]] = {}
    for spec in specs:
        entries.setdefault(spec.graph, []).append(_entry(bundle, spec))
    backend = TensorRtBackend(
        bundle,
        _Planned(Path("planned")),
        entries,
        # Native, which keeps no kernels in a file.
        TensorRt("tensorrt", module),
        Device(Cuda(_Runtime(device))),
        lambda _: None,
    )
    return backend, device


def _logger() -> type:
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)
    return type("Logger", (), {"Severity": severity})


def _entry(bundle: Bundle, spec: EngineSpec) -> EngineEntry:
    graph = bundle.manifest.graphs[spec.graph].file
    stamp = Stamp(
        graph=spec.graph,
        graph_sha256=graph.sha256,
        weights_sha256=graph.sha256,
        flavour="tensorrt",
        version=_VERSION,
        targets=("planned",),
        precision=bundle.manifest.provenance.precision,
        profiles=spec.profiles,
        baked=spec.baked,
    )
    file = FileEntry(path=spec.stem, sha256=graph.sha256, size_bytes=graph.size_bytes)
    return EngineEntry(stamp=stamp, file=file, build_s=0.0)
