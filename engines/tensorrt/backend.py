"""TensorRT and TensorRT-RTX as backends: a bundle's engines on one device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.bundles.bundle import Bundle
from stc.bundles.contents import KERNELS
from stc.contracts import COUNT
from stc.engines.engine import Engine
from stc.engines.gpu.device import Device, Recording, Say
from stc.engines.gpu.tensor import DeviceTensor, on_device, read_array
from stc.engines.library.library import EngineEntry, EngineLibrary, build_again
from stc.engines.library.plan import Sizes
from stc.engines.library.targets import TensorRt
from stc.engines.tensorrt.engine import EngineFile, TensorRtEngine, engine_ports
from stc.engines.tensorrt.shared import KernelCache, Shared, Sinks, Workspace, quiet_log
from stc.errors import EngineError


class TensorRtBackend:
    """Engines of `library` for `bundle`, on `device`; see `stc.engines.engine.Backend`.

    Calls are enqueued, `to_host` waits. Tensors are DeviceTensors. `say` is told, once each, what
    a user should know but can go on with. An engine of which `refusal` knows why not is not loaded.
    A context manager: closing frees the device.

    lock: held by whoever works with it or its engines where several threads may. What one thread
        allocates would break what another captures, and its copies would become part of it.
    """

    def __init__(
        self,
        bundle: Bundle,
        library: EngineLibrary,
        entries: dict[str, list[EngineEntry]],
        tensorrt: TensorRt,
        device: Device,
        say: Say,
        *,
        refusal: Callable[[EngineEntry], EngineError | None] = lambda _: None,
    ) -> None:
        self.name: str = tensorrt.flavour
        self.device = device
        self.lock = threading.RLock()
        self.tensorrt = tensorrt
        self._bundle = bundle
        self._library = library
        self._entries = entries
        self._refusal = refusal
        self._say = say
        self._said: set[str] = set()
        self._log = quiet_log(tensorrt.module)
        try:
            self._runtime = tensorrt.module.Runtime(self._log)
        except Exception as error:  # pybind's, with nothing in it
            device.close()
            got = f"{tensorrt.version} cannot be started ({self._log.last or error})"
            raise EngineError(self.name, got, "", tensorrt.wheel_fix) from error
        self._rebuild = build_again(bundle, tensorrt.flavour)
        self._shared = Shared(
            tensorrt,
            device,
            self._log,
            Workspace(device),
            Sinks(device),
            KernelCache(library.file(KERNELS)),
            self._rebuild,
        )
        self._engines: list[TensorRtEngine] = []

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load(self, graph: str) -> Engine:
        """The engine of `graph`, of all its sizes. Raises EngineError when it cannot be loaded."""
        files = [
            EngineFile(
                entry.file.path, partial(self._deserialize, graph, entry), entry.stamp.profiles
            )
            for entry in self._entries_of(graph)
        ]
        if len(files) == 1:
            # To fail early. Which of several is needed, whoever knows the sizes says by `prepare`.
            files[0].engine()
        loaded = TensorRtEngine(graph, self._bundle.manifest.graphs[graph], files, self._shared)
        self._engines.append(loaded)
        return loaded

    def prepare(self, graph: str, wanted: list[Sizes], flags: str) -> None:
        """Engines of `graph`, loaded before, are ready for the sizes `wanted`.

        Raises EngineError when there is none of a size; `flags` of stc-build would have it built.
        """
        for loaded in self._engines:
            if loaded.name == graph:
                loaded.prepare(wanted, flags)

    def sizes(self, graph: str, symbol: str) -> tuple[int, ...]:
        """The sizes of the free axis `symbol` that engines of `graph` are built for, ascending.

        Raises EngineError when there is no engine.
        """
        profiles = (
            profile for entry in self._entries_of(graph) for profile in entry.stamp.profiles
        )
        return tuple(sorted({profile[symbol] for profile in profiles}))

    def to_device(self, array: NDArray[np.generic]) -> DeviceTensor:
        """A tensor with the values of `array`: a host array, or one that lies on this GPU."""
        if on_device(array):
            found = read_array(array, self.device)
            tensor = DeviceTensor(self.device, found.shape, found.dtype)
            self.device.copy(tensor.address, found.address, tensor.size_bytes)
            self.device.synchronize()  # its owner may reuse it from here on
            return tensor
        host = np.ascontiguousarray(array)
        constant = int(host[0]) if host.dtype == np.int64 and host.shape == (1,) else None
        tensor = DeviceTensor(self.device, host.shape, host.dtype, constant)
        self.device.upload(tensor.address, host)
        self.device.synchronize()
        return tensor

    def to_host(self, tensor: DeviceTensor) -> NDArray[Any]:
        array = np.empty(tensor.shape, tensor.dtype)
        self.device.download(array, tensor.address)
        self.device.synchronize()
        return array

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceTensor:
        return DeviceTensor(self.device, shape, dtype)

    def write_rows(
        self,
        buffer: DeviceTensor,
        start: int,
        rows: DeviceTensor,
        first: int = 0,
        count: int | None = None,
    ) -> None:
        heads, held, width = buffer.shape
        given = rows.shape[1]
        row_bytes = width * buffer.dtype.itemsize
        self.device.copy_rows(
            buffer.address + start * row_bytes,
            held * row_bytes,
            rows.address + first * row_bytes,
            given * row_bytes,
            row_bytes=(given - first if count is None else count) * row_bytes,
            rows=heads,
        )

    def read_rows(self, tensor: DeviceTensor, start: int, count: int) -> NDArray[Any]:
        *heads, held, width = tensor.shape
        row_bytes = width * tensor.dtype.itemsize
        if np.prod(heads) == 1 or count == held:  # they lie in one piece
            array = np.empty((*heads, count, width), tensor.dtype)
            self.device.download(array, tensor.address + start * row_bytes)
            self.device.synchronize()
            return array
        found = DeviceTensor(self.device, (*heads, count, width), tensor.dtype)
        self.device.copy_rows(
            found.address,
            count * row_bytes,
            tensor.address + start * row_bytes,
            held * row_bytes,
            row_bytes=count * row_bytes,
            rows=int(np.prod(heads)),
        )
        return self.to_host(found)

    def workspace_bytes(self) -> dict[str, int]:
        """Scratch memory of every engine that was loaded, by the name of its file."""
        return {
            file.name: int(file.engine().device_memory_size_v2)
            for loaded in self._engines
            for file in loaded.files
            if file.loaded
        }

    def recording(self, name: str, body: Callable[[], None]) -> Recording:
        """What repeats the device work that `body` enqueues; see Recording."""
        return Recording(self.device, name, body, self._say_once)

    def close(self) -> None:
        """Engines and memory are given back; tensors of this backend are of no use any more."""
        with self.lock:
            try:
                if not (self.device.lost or self.device.closed):
                    self._keep_kernels()
            finally:
                for loaded in self._engines:
                    loaded.close()
                self._engines.clear()
                self._runtime = None
                self.device.close()

    def refuse_closed(self) -> None:
        self.device.refuse_closed()

    def _keep_kernels(self) -> None:
        try:
            self._shared.kernels.save()
        except OSError as error:
            reason = error.strerror or str(error)
            self._say_once(f"kernels could not be kept ({reason}): each start compiles them again")

    def _entries_of(self, graph: str) -> list[EngineEntry]:
        if graph not in self._entries:
            fix = f"build it with: {self._rebuild}"
            raise EngineError(graph, "has no engine", "", fix)
        return self._entries[graph]

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)

    def _deserialize(self, graph: str, entry: EngineEntry) -> Any:
        if (refusal := self._refusal(entry)) is not None:
            raise refusal
        engine = self._runtime.deserialize_cuda_engine(self._library.read(entry))
        if engine is None:
            raise EngineError(
                graph,
                f"{self.name} {self.tensorrt.version} cannot load {entry.file.path} "
                f"({self._log.last})",
                "",
                f"build again with: {self._rebuild}",
            )
        self._check_ports(graph, engine)
        return engine

    def _check_ports(self, graph: str, engine: Any) -> None:
        """The engine's tensors are those of the manifest, all in device memory."""
        described = self._bundle.manifest.graphs[graph]
        expected = {
            (port.name, port in described.inputs, port.dtype, True)
            for port in [*described.inputs, *described.outputs]
            if port.name != COUNT
        }
        found = set(engine_ports(self.tensorrt.module, engine))
        if found != expected:
            odd = sorted(found ^ expected)[0]
            got = f"its engine disagrees with the manifest on {odd[0]}"
            raise EngineError(graph, got, "", f"build again with: {self._rebuild}")
