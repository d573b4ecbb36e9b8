# ruff: noqa: N802, N815 (the names are CUDA's)
"""A mock of cuda.bindings.runtime, faithful where the device loop could go wrong.

Work is only enqueued; it runs, in stream order, when somebody waits. A capture runs nothing and
keeps the addresses it saw. Memory that was freed is gone, its address never comes back, and work
that touches it breaks the device for good, as on a GPU. Pinned host memory is read when the copy
runs, not when it is enqueued, and who writes to it once it was freed is found out. Whether a reset
fixes a device that broke is the test's choice: CUDA does not promise it. Calls return (status,
values...) and never raise.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fake_stream import FakeEvent, FakeStream, Work

NAMES = {
    0: "cudaSuccess",
    1: "cudaErrorInvalidValue",
    2: "cudaErrorMemoryAllocation",
    35: "cudaErrorInsufficientDriver",
    100: "cudaErrorNoDevice",
    400: "cudaErrorInvalidResourceHandle",
    600: "cudaErrorNotReady",
    700: "cudaErrorIllegalAddress",
    719: "cudaErrorLaunchFailure",
    900: "cudaErrorStreamCaptureUnsupported",
    901: "cudaErrorStreamCaptureInvalidated",
}
STICKY = (700, 719)
FREED = 0xEE
"""What freed pinned memory is filled with."""
Bytes = NDArray[np.uint8]


class DeviceFaultError(Exception):
    """Work on the device that breaks it."""


class FakeCuda:
    """The functions of cuda.bindings.runtime that the engines call, on made-up memory.

    fail: function name -> how many calls to let pass before one returns `status`.
    calls: every function called, in order.
    reset_fixes: whether cudaDeviceReset ends a sticky error.
    pageable_copies: copies from or to host memory that is not pinned.
    """

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaEventRecordExternal = 1
    cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=75,
        cudaDevAttrComputeCapabilityMinor=76,
        cudaDevAttrIntegrated=18,
    )

    def __init__(self, total_bytes: int = 1 << 30, capability: tuple[int, int] = (8, 9)) -> None:
        self.total_bytes = total_bytes
        self.capability = capability
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, FakeStream] = {}
        self.events: set[FakeEvent] = set()
        self.executables: set[int] = set()
        self.calls: list[str] = []
        self.fail: dict[str, tuple[int, int]] = {}
        self.sticky = 0
        self.reset_fixes = True
        self.pageable_copies = 0
        self._freed: list[Bytes] = []
        self._freed_pinned: list[Any] = []
        self._graphs: dict[int, list[Work]] = {}
        self._next = 0x10_0000
        self._clock = 0

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(found):
            return found

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                left, status = self.fail[name]
                if left:
                    self.fail[name] = (left - 1, status)
                else:
                    del self.fail[name]
                    self.sticky = status if status in STICKY else self.sticky
                    return status, None
            if self.sticky and name not in (
                "cudaDeviceReset",
                "cudaGetErrorName",
                "cudaGetErrorString",
            ):
                return self.sticky, None
            result: tuple[Any, ...] = found(*arguments)
            return result

        return called

    # Memory.

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self._break_captures():
            return 900, None
        if size + sum(map(len, self.memory.values())) > self.total_bytes:
            return 2, None
        # Real addresses, so that numpy can stand in for another library on this GPU. Whoever
        # reads what nobody wrote gets numbers that spread.
        raw = np.full(size + 256, 0xFF, np.uint8)
        start = -raw.ctypes.data % 256
        content = raw[start : start + size]
        self.memory[content.ctypes.data] = content
        return 0, content.ctypes.data

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        if self._break_captures():
            return (900,)
        if address not in self.memory:
            return (1,)
        status = self._run_all()
        self._freed.append(self.memory.pop(address))
        return (status,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        buffer = (ctypes.c_byte * size)()
        self.pinned[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFreeHost(self, address: int) -> tuple[Any, ...]:
        if address not in self.pinned:
            return (1,)
        self._free_pinned(address)
        return (0,)

    def _free_pinned(self, address: int) -> None:
        buffer = self.pinned.pop(address)
        ctypes.memset(buffer, FREED, ctypes.sizeof(buffer))
        self._freed_pinned.append(buffer)

    def written_after_free(self) -> bool:
        """Whether somebody wrote to pinned memory that was freed."""
        return any(bytes(buffer).strip(bytes([FREED])) for buffer in self._freed_pinned)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return 0, self.total_bytes - sum(map(len, self.memory.values())), self.total_bytes

    def at(self, address: int, size: int) -> Bytes:
        """The device's bytes there. Raises DeviceFaultError outside what is allocated."""
        for base, content in self.memory.items():
            if base <= address and address + size <= base + len(content):
                return content[address - base : address - base + size]
        raise DeviceFaultError(f"{size} bytes at {address:#x} are not allocated")

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: int, stream: FakeStream
    ) -> tuple[Any, ...]:
        if kind == 1:
            staged = None if self._is_pinned(source) else ctypes.string_at(source, size)
            self.pageable_copies += staged is not None
            if staged is not None and stream.captured is not None:
                return 900, None

            def copy() -> None:
                content = staged if staged is not None else ctypes.string_at(source, size)
                self.at(target, size)[:] = np.frombuffer(content, np.uint8)
        elif kind == 2:
            self.pageable_copies += not self._is_pinned(target)

            def copy() -> None:
                ctypes.memmove(target, self.at(source, size).tobytes(), size)
        else:

            def copy() -> None:
                self.at(target, size)[:] = self.at(source, size)

        return (self.enqueue(stream, copy),)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: int,
        stream: FakeStream,
    ) -> tuple[Any, ...]:
        if kind != 3 or width > min(target_pitch, source_pitch):
            return (1,)

        def copy() -> None:
            for row in range(height):
                found = self.at(source + row * source_pitch, width)
                self.at(target + row * target_pitch, width)[:] = found

        return (self.enqueue(stream, copy),)

    # Streams and events.

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = FakeStream(self._handle(), flags)
        self.streams[stream.handle] = stream
        return 0, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any, ...]:
        del self.streams[stream.handle]
        return (0,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> tuple[Any, ...]:
        if self._break_captures():
            return (900,)
        return (self._run_all(),)

    def cudaStreamWaitEvent(
        self, stream: FakeStream, event: FakeEvent, flags: int
    ) -> tuple[Any, ...]:
        return (self.enqueue(stream, lambda: None),)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        event = FakeEvent()
        self.events.add(event)
        return 0, event

    def cudaEventDestroy(self, event: FakeEvent) -> tuple[Any, ...]:
        self.events.discard(event)
        return (0,)

    def cudaEventRecord(self, event: FakeEvent, stream: FakeStream | int) -> tuple[Any, ...]:
        if isinstance(stream, int):
            return (0,)  # another library's
        if stream.captured is not None:
            event.timed = False
            return (0,)
        event.time = None
        return (self.enqueue(stream, lambda: self._mark(event)),)

    def cudaEventRecordWithFlags(
        self, event: FakeEvent, stream: FakeStream, flags: int
    ) -> tuple[Any, ...]:
        if stream.captured is None:
            return (1,)
        return (self.enqueue(stream, lambda: self._mark(event)),)

    def cudaEventElapsedTime(self, start: FakeEvent, end: FakeEvent) -> tuple[Any, ...]:
        if not (start.timed and end.timed):
            return 400, None
        if start.time is None or end.time is None:
            return 600, None
        return 0, float(end.time - start.time)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: int) -> tuple[Any, ...]:
        stream.captured, stream.broken = [], False
        return (0,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Any, ...]:
        if stream.captured is None:
            return 1, None
        work, stream.captured = stream.captured, None
        if stream.broken:
            return 901, None
        graph = self._handle()
        self._graphs[graph] = work
        return 0, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        executable = self._handle()
        self._graphs[executable] = list(self._graphs[graph])
        self.executables.add(executable)
        return 0, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[Any, ...]:
        del self._graphs[graph]
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: FakeStream) -> tuple[Any, ...]:
        for work in self._graphs[executable]:
            self.enqueue(stream, work)
        return (0,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[Any, ...]:
        self.executables.discard(executable)
        del self._graphs[executable]
        return (0,)

    # The device.

    def cudaSetDevice(self, index: int) -> tuple[Any, ...]:
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: int, index: int) -> tuple[Any, ...]:
        return 0, {75: self.capability[0], 76: self.capability[1], 18: 0}[attribute]

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, ...]:
        return 0, SimpleNamespace(name=b"Fake GPU")

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return 0, 12060

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return 0, 12060

    def cudaDeviceReset(self) -> tuple[Any, ...]:
        if not self.reset_fixes:
            return (self.sticky,)
        self.sticky = 0
        self._freed += self.memory.values()
        for address in list(self.pinned):
            self._free_pinned(address)
        for held in (self.memory, self.streams, self.events, self._graphs):
            held.clear()
        self.executables.clear()
        return (0,)

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (0,)

    def cudaGetErrorName(self, status: int) -> tuple[Any, ...]:
        return 0, NAMES[int(status)].encode()

    def cudaGetErrorString(self, status: int) -> tuple[Any, ...]:
        return 0, b"as the test asked for"

    def enqueue(self, stream: FakeStream | int, work: Work) -> int:
        """`work` stands last in `stream`, or in what it captures. Returns a status."""
        found = self.streams[int(stream)]
        if found.captured is not None:
            found.captured.append(work)
        else:
            found.work.append(work)
        return 0

    def capturing(self, stream: int) -> bool:
        return self.streams[stream].captured is not None

    def pending(self) -> int:
        """Pieces of work that nobody waited for yet."""
        return sum(len(stream.work) for stream in self.streams.values())

    def _mark(self, event: FakeEvent) -> None:
        event.time = self._clock

    def _run_all(self) -> int:
        for stream in self.streams.values():
            work, stream.work = stream.work, []
            for piece in work:
                self._clock += 1
                try:
                    piece()
                except DeviceFaultError:
                    self.sticky = 700
                    return 700
        return 0

    def _break_captures(self) -> bool:
        """Whether a capture was under way; the call that asks has broken it."""
        captures = [stream for stream in self.streams.values() if stream.captured is not None]
        for stream in captures:
            stream.broken = True
        return bool(captures)

    def _is_pinned(self, address: int) -> bool:
        return any(
            base <= address < base + ctypes.sizeof(held) for base, held in self.pinned.items()
        )

    def _handle(self) -> int:
        self._next += 1
        return self._next
