"""What the device loop relies on, asked of the mock and, where there is one, of a real GPU.

The same claims of both: a mock that answers otherwise than CUDA proves nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stc.engines.gpu.cuda import Cuda, device_facts, load_cuda
from stc.engines.gpu.device import Device, Recording
from stc.engines.gpu.tensor import DeviceTensor, PinnedArray
from stc.errors import DeviceError, EngineError
from tests.fake_cuda import FakeCuda


def real_cuda() -> Cuda:
    """The GPU of this machine; skips the test where there is none."""
    try:
        cuda = load_cuda()
        device_facts(cuda)
    except EngineError as error:
        pytest.skip(f"no GPU: {error}")
    return cuda


@pytest.fixture(params=["mock", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(Cuda(FakeCuda()) if request.param == "mock" else real_cuda())
    yield opened
    opened.close()


def tensor(device: Device, values: Any) -> DeviceTensor:
    array = np.asarray(values, np.float32)
    made = DeviceTensor(device, array.shape, array.dtype)
    device.upload(made.address, array)
    device.synchronize()
    return made


def values_of(made: DeviceTensor) -> Any:
    array = np.empty(made.shape, made.dtype)
    made.device.download(array, made.address)
    made.device.synchronize()
    return array.tolist()


def copying(target: DeviceTensor, source: DeviceTensor) -> Any:
    def body() -> None:
        for one in (target, source):
            source.device.uses(one.address)
        source.device.copy(target.address, source.address, source.size_bytes)

    return body


def captured(recording: Recording) -> bool:
    return recording.captured


def test_what_goes_up_comes_down(device: Device) -> None:
    assert values_of(tensor(device, [1, 2, 3])) == [1, 2, 3]


def test_pinned_memory_is_read_when_the_copy_runs(device: Device) -> None:
    host = PinnedArray(device, (2,), np.float32)
    host.values[:] = (1, 2)
    made = tensor(device, [0, 0])
    graph = device.capture(lambda: device.upload(made.address, host.values))
    host.values[:] = (3, 4)
    device.launch(graph)
    assert values_of(made) == [3, 4]
    device.drop(graph)


def test_a_capture_runs_nothing_and_its_graph_reads_what_is_there_at_launch(
    device: Device,
) -> None:
    source, target = tensor(device, [1, 2]), tensor(device, [0, 0])
    graph = device.capture(copying(target, source))
    assert values_of(target) == [0, 0]
    device.upload(source.address, np.array([5, 6], np.float32))
    device.launch(graph)
    assert values_of(target) == [5, 6]
    device.drop(graph)


def test_work_runs_in_the_order_it_was_enqueued(device: Device) -> None:
    first, second, third = (tensor(device, [value]) for value in (1, 2, 3))
    device.copy(second.address, first.address, 4)
    device.copy(third.address, second.address, 4)
    assert values_of(third) == [1]


def test_a_body_that_waits_breaks_its_capture_and_nothing_else(device: Device) -> None:
    with pytest.raises(DeviceError):
        device.capture(device.synchronize)
    assert not device.capturing
    assert not device.lost
    assert values_of(tensor(device, [7])) == [7]


def test_memory_is_not_made_inside_a_capture(device: Device) -> None:
    def body() -> None:
        device.allocate(8)

    with pytest.raises(DeviceError, match="memory made before it"):
        device.capture(body)
    assert values_of(tensor(device, [7])) == [7]


def test_marks_are_timed_inside_and_outside_a_graph(device: Device) -> None:
    start, end = device.event(), device.event()
    source, target = tensor(device, np.zeros(1 << 16)), tensor(device, np.zeros(1 << 16))

    def body() -> None:
        device.mark(start)
        copying(target, source)()
        device.mark(end)

    body()
    device.synchronize()
    assert device.elapsed_ms(start, end) > 0
    graph = device.capture(body)
    for _ in range(2):
        device.launch(graph)
        device.synchronize()
        assert device.elapsed_ms(start, end) > 0
    device.drop(graph)


def test_rows_a_pitch_apart_are_copied(device: Device) -> None:
    source, target = tensor(device, np.arange(12).reshape(2, 6)), tensor(device, np.zeros((2, 4)))
    device.copy_rows(target.address, 16, source.address + 8, 24, row_bytes=8, rows=2)
    assert values_of(target) == [[2, 3, 0, 0], [8, 9, 0, 0]]


def test_a_recording_is_plain_then_captured_until_memory_it_uses_is_freed(
    device: Device,
) -> None:
    said: list[str] = []
    source, target = tensor(device, [1, 2]), tensor(device, [0, 0])
    recording = Recording(device, "copy", copying(target, source), said.append)
    states = []
    for step in range(4):
        device.upload(source.address, np.array([step, step], np.float32))
        device.synchronize()
        recording.run()
        assert values_of(target) == [step, step]
        states.append(captured(recording))
    assert states == [False, True, True, True]
    other = tensor(device, [0])
    graph = device.capture(copying(other, other))
    other.close()
    assert graph.stale
    # Nothing of the recording's was freed.
    assert captured(recording)
    device.drop(graph)
    source.close()
    assert not captured(recording)
    assert said == []


def test_a_recording_that_cannot_be_captured_says_so_and_goes_on(device: Device) -> None:
    said: list[str] = []
    source, target = tensor(device, [3]), tensor(device, [0])

    def body() -> None:
        copying(target, source)()
        device.synchronize()  # no graph can hold that

    recording = Recording(device, "frame", body, said.append)
    for _ in range(4):
        recording.run()
    assert recording.plain
    assert len(said) == 1
    assert said[0].startswith("frame: no CUDA graph (cudaStreamSynchronize")
    assert values_of(target) == [3]


def test_memory_is_given_back_when_nobody_holds_it(device: Device) -> None:
    before = device.allocated_bytes
    made = tensor(device, np.zeros(1000))
    assert device.allocated_bytes == before + 4000
    del made
    gc.collect()
    assert device.allocated_bytes == before


def test_too_much_memory_is_an_error_and_the_device_goes_on(device: Device) -> None:
    with pytest.raises(DeviceError, match="cudaMalloc: cudaErrorMemoryAllocation"):
        device.allocate(1 << 50)
    assert not device.lost
    assert values_of(tensor(device, [7])) == [7]


def test_a_closed_device_is_refused(device: Device) -> None:
    made = tensor(device, [1])
    device.close()
    device.close()
    assert made.closed
    with pytest.raises(DeviceError, match="device: is closed"):
        device.synchronize()


def test_addresses_are_aligned_for_scratch_memory(device: Device) -> None:
    assert all(device.allocate(size) % 256 == 0 for size in (1, 100, 1000))


@pytest.mark.gpu
def test_an_array_of_torch_is_read_where_it_lies() -> None:
    torch = pytest.importorskip("torch")
    cuda = real_cuda()
    if not torch.cuda.is_available():
        pytest.skip("PyTorch without CUDA")
    from stc.engines.gpu.tensor import read_array

    device = Device(cuda)
    array = torch.arange(6, dtype=torch.float32, device="cuda").reshape(2, 3)
    found = read_array(array, device)
    target = DeviceTensor(device, (2, 3), np.float32)
    device.copy(target.address, found.address, 24)
    assert values_of(target) == array.cpu().tolist()
    device.close()


@pytest.mark.gpu
def test_two_devices_share_the_primary_context() -> None:
    cuda = real_cuda()
    first, second = Device(cuda), Device(cuda)
    made = tensor(first, [1, 2])
    target = DeviceTensor(second, (2,), np.float32)
    second.wait_for(int(first.stream))
    second.copy(target.address, made.address, 8)
    assert values_of(target) == [1, 2]
    first.close()
    assert values_of(target) == [1, 2]
    second.close()


def test_pinned_memory_refuses_once_it_was_given_back(device: Device) -> None:
    closed, with_device = (PinnedArray(device, (2,), np.float32) for _ in range(2))
    closed.close()
    with pytest.raises(DeviceError, match="pinned memory: was given back"):
        _ = closed.values
    device.close()
    with pytest.raises(DeviceError, match="device: is closed"):
        _ = with_device.values


def test_the_stream_does_not_wait_for_the_default_stream() -> None:
    cuda = FakeCuda()
    device = Device(Cuda(cuda))
    (stream,) = cuda.streams.values()
    assert stream.flags == FakeCuda.cudaStreamNonBlocking
    device.close()
