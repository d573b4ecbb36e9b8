"""One GPU as a stream session uses it: memory, one stream, and CUDA graphs of its work.

Everything is enqueued on one non-default stream, so work runs in the order it was enqueued and
only `synchronize` waits. The device's primary context is used, so that arrays of PyTorch, CuPy and
pycuda can be read. One thread at a time.

A device lives until `close`, or until an error that CUDA cannot recover from (`lost`): then nothing
on it works any more and its memory is gone. Whether a new Device can be opened in the same process
depends on whether the driver could reset the context; CUDA promises it for no such error.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from stc.engines.gpu.cuda import Cuda
from stc.errors import DeviceError, EngineError

Say = Callable[[str], None]


@dataclass(eq=False)
class DeviceGraph:
    """`executable` replays work that uses the memory at `addresses`.

    stale: some of that memory was freed; it must not be launched any more.
    """

    executable: Any
    addresses: frozenset[int]
    stale: bool = False


class Device:
    """GPU `index` through `cuda`.

    lost: why nothing works on it any more, "" while it does.
    """

    def __init__(self, cuda: Cuda, index: int = 0) -> None:
        self.cuda = cuda
        self.index = index
        self.lost = ""
        self.closed = False
        self._runtime = cuda.runtime
        self._allocated: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._events: list[Any] = []
        self._graphs: list[DeviceGraph] = []
        self._capturing: set[int] | None = None
        self._waiting: list[Callable[[], None]] = []
        self._call("cudaSetDevice", index)
        self.stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    @property
    def allocated_bytes(self) -> int:
        """Device memory allocated here and not freed."""
        return sum(self._allocated.values())

    @property
    def capturing(self) -> bool:
        """Whether work is being captured instead of run."""
        return self._capturing is not None

    def allocate(self, size_bytes: int) -> int:
        """The address of `size_bytes` of device memory, aligned to 256 bytes.

        Raises DeviceError when there is not that much, or during a capture, which cannot hold it.
        """
        if self.capturing:
            raise DeviceError("capture", f"asks for {size_bytes} bytes", "memory made before it")
        address = int(self._call("cudaMalloc", max(1, size_bytes)))
        self._allocated[address] = size_bytes
        return address

    def free(self, address: int) -> None:
        """The memory at `address` is given back, after all work that was enqueued.

        Graphs that use it are stale from then on, and no others.
        """
        if self._gone or address not in self._allocated:
            return
        if self.capturing:
            self._waiting.append(partial(self.free, address))  # now it would break the capture
            return
        for graph in self._graphs:
            graph.stale = graph.stale or address in graph.addresses
        del self._allocated[address]
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> int:
        """The address of `size_bytes` of page-locked host memory; see PinnedArray."""
        address = self._call("cudaHostAlloc", size_bytes, self._runtime.cudaHostAllocDefault)
        self._pinned.add(int(address))
        return int(address)

    def free_pinned(self, address: int) -> None:
        """Page-locked memory is given back; no copy of it may be under way."""
        if self._gone or address not in self._pinned:
            return
        if self.capturing:
            self._waiting.append(partial(self.free_pinned, address))
            return
        self._pinned.discard(address)
        self._call("cudaFreeHost", address)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Enqueue a copy of the host's `array` to `address`; it must not change until then."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        """Enqueue a copy from `address` to the host's `array`, there after `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, self.stream)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Enqueue a copy within the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind, self.stream)

    def copy_rows(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        *,
        row_bytes: int,
        rows: int,
    ) -> None:
        """Enqueue a copy within the device of `rows` rows that lie a pitch apart."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call(
            "cudaMemcpy2DAsync",
            target,
            target_pitch,
            source,
            source_pitch,
            row_bytes,
            rows,
            kind,
            self.stream,
        )

    def wait_for(self, stream: int) -> None:
        """Work enqueued from here on waits for what another library enqueued on `stream`."""
        event = self._call("cudaEventCreate")
        try:
            self._call("cudaEventRecord", event, stream)
            self._call("cudaStreamWaitEvent", self.stream, event, 0)
        finally:
            self._call("cudaEventDestroy", event)

    def synchronize(self) -> None:
        """All enqueued work is done. Raises DeviceError with the cause when some of it failed."""
        self._call("cudaStreamSynchronize", self.stream)

    def event(self) -> Any:
        """A point in the stream that can be marked and timed, until `free_event` or `close`."""
        event = self._call("cudaEventCreate")
        self._events.append(event)
        return event

    def free_event(self, event: Any) -> None:
        """An event is given back."""
        if not self._gone and event in self._events:
            self._events.remove(event)
            self._call("cudaEventDestroy", event)

    def mark(self, event: Any) -> None:
        """Enqueue: `event` takes the time when the stream gets here."""
        if self.capturing:
            # Without the flag a capture takes the event for an order of work, and times nothing.
            flag = self._runtime.cudaEventRecordExternal
            self._call("cudaEventRecordWithFlags", event, self.stream, flag)
        else:
            self._call("cudaEventRecord", event, self.stream)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """GPU time between two marks, after `synchronize`."""
        return float(self._call("cudaEventElapsedTime", start, end))

    def uses(self, address: int) -> None:
        """Work about to be enqueued reads or writes the memory at `address`."""
        if self._capturing is not None:
            self._capturing.add(address)

    def capture(self, body: Callable[[], None]) -> DeviceGraph:
        """The work `body` enqueues; none of it is run.

        Raises what `body` raises, or DeviceError when its work cannot be captured or the device
        was lost; the stream is as before then.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        used = self._capturing = set()
        try:
            graph = self._end_capture(body)
            try:
                executable = self._call("cudaGraphInstantiate", graph, 0)
            finally:
                self._call("cudaGraphDestroy", graph)
            made = DeviceGraph(executable, frozenset(used))
            self._graphs.append(made)
            return made
        finally:
            # Only now: a graph that uses what was dropped meanwhile is stale.
            waiting, self._waiting = self._waiting, []
            for free in waiting:
                free()

    def launch(self, graph: DeviceGraph) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph.executable, self.stream)

    def drop(self, graph: DeviceGraph) -> None:
        """A captured graph is gone."""
        if not self._gone and graph in self._graphs:
            self._graphs.remove(graph)
            self._call("cudaGraphExecDestroy", graph.executable)

    def close(self) -> None:
        """Graphs, memory, events and stream are given back. A lost device gives back all it can."""
        if self.closed:
            return
        self.closed = True
        if self.lost:
            # Nothing but a reset ends a sticky error; it frees what the process has on the device.
            # Where the driver cannot reset it, the next Device says what to do.
            self._runtime.cudaDeviceReset()
            return
        self._runtime.cudaStreamSynchronize(self.stream)
        for graph in self._graphs:
            self._runtime.cudaGraphExecDestroy(graph.executable)
        for address in self._allocated:
            self._runtime.cudaFree(address)
        for address in self._pinned:
            self._runtime.cudaFreeHost(address)
        for event in self._events:
            self._runtime.cudaEventDestroy(event)
        self._runtime.cudaStreamDestroy(self.stream)
        self._allocated.clear()

    @property
    def _gone(self) -> bool:
        """Whether there is nothing left that could be given back one by one."""
        return self.closed or bool(self.lost)

    def refuse_closed(self) -> None:
        """Raises DeviceError when it was closed, with the cause when it was lost."""
        if self.closed:
            got = f"was lost ({self.lost})" if self.lost else "is closed"
            raise DeviceError("device", got, "", "open the tower again")

    def refuse_lost(self) -> None:
        """Raises DeviceError when it does not answer; for failures that no CUDA call told of."""
        self._look_for_loss()
        if self.lost:
            raise DeviceError("device", f"was lost ({self.lost})", "", "open the tower again")

    def _call(self, function: str, *arguments: Any) -> Any:
        self.refuse_closed()
        try:
            return self.cuda.call(function, *arguments)
        except DeviceError:
            if not self.capturing:
                self._look_for_loss()
            raise

    def _look_for_loss(self) -> None:
        """Whether the device still answers once an error that was only one call's is forgotten."""
        self._runtime.cudaGetLastError()
        status, *_ = self._runtime.cudaMemGetInfo()
        if int(status) != 0:
            self.lost = self.lost or self.cuda.told(status)

    def _end_capture(self, body: Callable[[], None]) -> Any:
        """The graph of the work that `body` enqueues. Ends the capture whatever happens."""
        try:
            body()
            return self._call("cudaStreamEndCapture", self.stream)
        except BaseException:
            # A capture that is of no use; its status is that of what broke it.
            result = self._runtime.cudaStreamEndCapture(self.stream)
            if int(result[0]) == 0:
                self._runtime.cudaGraphDestroy(result[1])
            self.refuse_lost()
            raise
        finally:
            self._capturing = None


class Recording:
    """Repeats the work that `body` enqueues on `device`; `name` is what messages call it.

    `body` enqueues the same work at the same addresses every time and does not synchronize. The
    first run is a warm-up: contexts allocate and compile in it what a capture cannot hold. Then it
    is captured, and replayed. A graph holds addresses, so when memory it used was freed it is
    warmed up and captured anew. Work that cannot be captured is enqueued plainly for good, and that
    is said once.
    """

    def __init__(self, device: Device, name: str, body: Callable[[], None], say: Say) -> None:
        self.name = name
        self.plain = False
        self._device = device
        self._body = body
        self._say = say
        self._warm = False
        self._graph: DeviceGraph | None = None
        self._finalizer: weakref.finalize[..., Recording] | None = None

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph."""
        return self._graph is not None and not self._graph.stale

    def run(self) -> None:
        """The work is enqueued once more.

        Raises EngineError when it cannot be; whatever was enqueued of it is of no use then.
        """
        if self._graph is not None and self._graph.stale:
            self.close()
        if self._graph is None and self._warm and not self.plain:
            self._capture()
        if self._graph is None:
            self._body()
            self._warm = True
        else:
            self._device.launch(self._graph)

    def close(self) -> None:
        """Its graph is given back; another run starts anew."""
        if self._finalizer is not None:
            self._finalizer()
        self._graph = self._finalizer = None
        self._warm = False

    def _capture(self) -> None:
        try:
            self._graph = self._device.capture(self._body)
        except EngineError as error:
            if self._device.lost:
                raise
            self.plain = True
            self._say(f"{self.name}: no CUDA graph ({error}); engines are enqueued one by one")
            return
        self._finalizer = weakref.finalize(self, self._device.drop, self._graph)
