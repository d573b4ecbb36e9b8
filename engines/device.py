"""One GPU as a stream session uses it: memory, one stream, and CUDA graphs of its work.

Everything is enqueued on one non-default stream, so work runs in the order it was enqueued and
only `synchronize` waits. The device's primary context is used, so that arrays of PyTorch, CuPy and
pycuda can be read. One thread at a time.

A device lives until `close`, or until an error that CUDA cannot recover from (`lost`): then nothing
on it works any more, its memory is gone, and a new Device must be opened.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.engines.cuda import Cuda
from stc.errors import DeviceError


class Device:
    """GPU `index` through `cuda`.

    epoch: grows whenever memory that a captured graph may use is freed: what was captured in an
        earlier epoch must not be replayed.
    """

    def __init__(self, cuda: Cuda, index: int = 0) -> None:
        self.cuda = cuda
        self.index = index
        self.epoch = 0
        self.lost = False
        self.closed = False
        self._runtime = cuda.runtime
        self._allocated: dict[int, int] = {}
        self._pinned: set[int] = set()
        self._events: list[Any] = []
        self._captured: set[int] = set()
        self._capturing: set[int] | None = None
        self._waiting: list[int] = []
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
        """The memory at `address` is given back, after all work that was enqueued."""
        if self.closed or address not in self._allocated:
            return
        if self.capturing:
            self._waiting.append(address)  # freeing now would break the capture
            return
        if address in self._captured:
            self._captured.discard(address)
            self.epoch += 1
        del self._allocated[address]
        self._call("cudaFree", address)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """A host array in memory that the device copies from and to without staging.

        It lives until the device is closed.
        """
        kind = np.dtype(dtype)
        items = int(np.prod(shape))
        size = max(1, items * kind.itemsize)
        address = int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))
        self._pinned.add(address)
        memory = memoryview((ctypes.c_byte * size).from_address(address)).cast("B")
        array: NDArray[Any] = np.frombuffer(memory, dtype=kind, count=items).reshape(shape)
        return array

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
        """A point in the stream that can be marked and timed; it lives until `close`."""
        event = self._call("cudaEventCreate")
        self._events.append(event)
        return event

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

    def capture(self, body: Callable[[], None]) -> Any:
        """The work `body` enqueues, as an executable graph; none of it is run.

        Raises what `body` raises, or DeviceError when its work cannot be captured; the stream is
        as before then.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        used = self._capturing = set()
        try:
            body()
            graph = self._call("cudaStreamEndCapture", self.stream)
        except BaseException:
            self._abandon_capture()
            raise
        finally:
            self._capturing = None
            self._captured |= used
            waiting, self._waiting = self._waiting, []
            for address in waiting:
                self.free(address)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, executable: Any) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", executable, self.stream)

    def drop(self, executable: Any) -> None:
        """A captured graph is gone."""
        if not self.closed:
            self._call("cudaGraphExecDestroy", executable)

    def close(self) -> None:
        """Memory, events and stream are given back. A lost device gives back all it can."""
        if self.closed:
            return
        self.closed = True
        if self.lost:
            # Nothing but a reset ends a sticky error; it frees what the process has on the device.
            self._runtime.cudaDeviceReset()
            return
        self._runtime.cudaStreamSynchronize(self.stream)
        for address in self._allocated:
            self._runtime.cudaFree(address)
        for address in self._pinned:
            self._runtime.cudaFreeHost(address)
        for event in self._events:
            self._runtime.cudaEventDestroy(event)
        self._runtime.cudaStreamDestroy(self.stream)
        self._allocated.clear()

    def _call(self, function: str, *arguments: Any) -> Any:
        if self.closed:
            raise DeviceError("device", "is closed", "", "open it again")
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
        self.lost = self.lost or int(status) != 0

    def _abandon_capture(self) -> None:
        """End a capture that is of no use; its status is that of what broke it."""
        result = self._runtime.cudaStreamEndCapture(self.stream)
        if int(result[0]) == 0:
            self._runtime.cudaGraphDestroy(result[1])
        self._look_for_loss()
