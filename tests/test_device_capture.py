"""CUDA graphs of frames: captured when possible, replayed only on memory that is still theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stc.contracts import HIDDEN
from stc.engines.gpu.tensor import DeviceTensor
from stc.errors import EngineError
from stc.method.graphs import EMBED, PIXEL_VALUES
from tests.device_cases import (
    SETTINGS,
    SPEC,
    Rig,
    assert_equal,
    assert_same_stream,
    frames,
    oracle_session,
    refusing,
)
from tests.other_thread import OtherThread


def test_graphs_are_captured_anew_when_memory_they_use_has_moved(rig: Rig) -> None:
    first = rig.session()
    oracle = oracle_session()
    stream = frames(34)
    for frame in stream[:18]:
        assert_equal(first.push(frame), oracle.push(frame))
    captures = rig.cuda.calls.count("cudaStreamBeginCapture")
    # Another pruner's engine asks for more scratch memory than any so far: it moves.
    second = rig.session(replace(SETTINGS, pruner="gaussian-fixed"))
    second.push(stream[0])
    assert first.captured == set()
    for frame in stream[18:]:
        assert_equal(first.push(frame), oracle.push(frame))
    assert rig.cuda.calls.count("cudaStreamBeginCapture") > captures
    assert first.captured == {"reference", "reuse"}


def test_a_kind_of_frame_is_captured_at_the_front_that_comes_next(rig: Rig) -> None:
    session = rig.session()
    stream = frames(16)
    for frame in stream[:3]:
        session.push(frame)
    assert session.captured == {"reuse"}
    for frame in stream[3:5]:
        session.push(frame)
    assert session.captured == set()  # the second reference frame changed the front
    for frame in stream[5:]:
        session.push(frame)
    assert session.captured == {"reference", "reuse"}


def test_closing_a_session_leaves_the_graphs_of_the_others(rig: Rig) -> None:
    first, second = rig.session(), rig.session()
    for frame in frames(16):
        first.push(frame)
        second.push(frame)
    captures = rig.cuda.calls.count("cudaStreamBeginCapture")
    second.close()
    assert first.captured == {"reference", "reuse"}
    for frame in frames(8):
        first.push(frame)
    assert rig.cuda.calls.count("cudaStreamBeginCapture") == captures


def test_another_thread_opens_runs_and_closes_a_session_while_a_frame_is_captured(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other() -> None:
        second = rig.session()
        assert_same_stream(second, SETTINGS, 18, seed=1)
        second.close()

    thread = OtherThread(rig.cuda, monkeypatch, other)
    session = rig.session()
    assert_same_stream(session, SETTINGS, 18)
    thread.join()
    assert session.captured == {"reference", "reuse"}
    assert rig.said == []


def test_a_captured_frame_copies_from_and_to_pinned_memory_alone(rig: Rig) -> None:
    session = rig.session()
    before = rig.cuda.pageable_copies
    for frame in frames(16):
        session.push(frame)
    assert rig.cuda.pageable_copies == before


def test_a_graph_is_not_replayed_on_a_closed_tensor(rig: Rig) -> None:
    source, target = (DeviceTensor(rig.device, (4,), np.float32) for _ in range(2))

    def body() -> None:
        for tensor in (source, target):
            rig.device.uses(tensor.address)
        rig.device.copy(target.address, source.address, 16)

    recording = rig.backend.recording("copy", body)
    for _ in range(3):
        recording.run()
    assert recording.captured
    source.close()
    assert not recording.captured


@pytest.mark.parametrize("closed", [PIXEL_VALUES, HIDDEN])
def test_a_graph_of_an_engine_is_not_replayed_on_a_closed_tensor(rig: Rig, closed: str) -> None:
    pixels = rig.backend.to_device(np.zeros(SPEC.pixel_shape, np.float32))
    hidden = rig.backend.empty((SPEC.tokens, SPEC.width), np.float32)

    def body() -> None:
        rig.tower.engine(EMBED)({PIXEL_VALUES: pixels}, {HIDDEN: hidden})

    recording = rig.backend.recording("embed", body)
    for _ in range(3):
        recording.run()
    assert recording.captured
    (pixels if closed == PIXEL_VALUES else hidden).close()
    assert not recording.captured


def test_an_engine_that_refuses_a_capture_is_enqueued_plainly_and_that_is_said_once(
    rig: Rig,
) -> None:
    rig.trt.refuse = refusing("embed", "capture")
    session = rig.session()
    assert_same_stream(session, SETTINGS, 18)
    assert session.captured == set()
    # Two kinds of frame, each at two sets of references.
    assert len(rig.said) == 2
    assert all("no CUDA graph (embed: TensorRT did not enqueue it" in said for said in rig.said)


def test_rtx_is_asked_before_it_is_captured(tmp_path: Path) -> None:
    rig = Rig(tmp_path, flavour="tensorrt-rtx")
    rig.trt.capturable = False
    session = rig.session()
    assert_same_stream(session, SETTINGS, 12)
    assert session.captured == set()
    assert "TensorRT cannot have it captured" in rig.said[0]


def test_a_capture_is_given_up_cleanly_when_its_body_fails(rig: Rig) -> None:
    def body() -> None:
        rig.backend.empty((1000,), np.float32)  # memory is not made inside a capture

    with pytest.raises(EngineError, match="memory made before it"):
        rig.device.capture(body)
    assert not rig.device.capturing
    assert_same_stream(rig.session(), SETTINGS, 6)


def test_tensors_dropped_inside_a_capture_are_freed_after_it(rig: Rig) -> None:
    doomed = [rig.backend.empty((10,), np.float32)]
    address = doomed[0].address
    graph = rig.device.capture(doomed.clear)
    assert address not in rig.cuda.memory
    rig.device.drop(graph)
