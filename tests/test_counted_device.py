"""The device that only counts, beside the mock of CUDA and TensorRT that computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from stc.bundles.bundle import Bundle
from stc.engines.library.plan import plan_engines
from stc.engines.tensorrt.counted import Asked, CountedDevice, counted_backend
from stc.method.family import stream_programs
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.device_cases import BUCKETS, SETTINGS, SPEC, Rig, frames, manifest

COPIES = ("cudaMemcpyAsync", "cudaMemcpy2DAsync")


def counted_frames(root: Path, settings: Settings, count: int) -> list[Asked]:
    """What each of `count` frames asks for."""
    specs = plan_engines(manifest(), BUCKETS, several_profiles=True)
    backend, device = counted_backend(Bundle(root, manifest()), specs)
    session = StreamSession(VisionTower(backend, SPEC, "fp32"), settings)
    asked = []
    for frame in frames(count):
        with device.counting() as one:
            session.push(frame)
        asked.append(one)
    return asked


@pytest.mark.parametrize("selection", ["shared", "layerwise"])
def test_frames_ask_for_what_the_mock_is_asked_for(
    rig: Rig, tmp_path: Path, selection: str
) -> None:
    settings = Settings(**{**vars(SETTINGS), "reference_interval": 2, "selection": selection})
    counted = counted_frames(tmp_path, settings, 12)
    session = rig.session(settings)
    for number, frame in enumerate(frames(12)):
        before = len(rig.cuda.calls)
        session.push(frame)
        if number < 8:  # until all are replays
            continue
        calls = Counter(rig.cuda.calls[before:])
        assert counted[number].enqueues == calls["cudaGraphLaunch"] == 1
        assert counted[number].copies == sum(calls[name] for name in COPIES) > 0
        assert counted[number].synchronisations == calls["cudaStreamSynchronize"] == 1
        assert counted[number].allocations == calls["cudaMalloc"] + calls["cudaHostAlloc"] == 0
        assert counted[number].frees == calls["cudaFree"] + calls["cudaFreeHost"] == 0


def test_a_frame_runs_the_engines_of_its_program_one_by_one_or_as_a_graph(tmp_path: Path) -> None:
    settings = Settings(**{**vars(SETTINGS), "reference_interval": 2})
    reference, reuse, *_, last_reference, last_reuse = counted_frames(tmp_path, settings, 12)
    programs = {one.name: one for one in stream_programs(SPEC, "fp32", settings)}
    kinds = (("reference", reference, last_reference), ("reuse", reuse, last_reuse))
    for name, first, last in kinds:
        expected = [(call.graph, dict(call.sizes)) for call in programs[name].calls]
        assert first.runs == last.runs == expected
        assert (first.enqueues, last.enqueues) == (len(expected), 1)


def test_nothing_is_counted_outside(tmp_path: Path) -> None:
    settings = Settings(**{**vars(SETTINGS), "reference_interval": 2})
    specs = plan_engines(manifest(), BUCKETS, several_profiles=True)
    backend, device = counted_backend(Bundle(tmp_path, manifest()), specs)
    session = StreamSession(VisionTower(backend, SPEC, "fp32"), settings)
    first, *others = frames(6)
    with device.counting() as asked:
        session.push(first)
    before = replace(asked, runs=[*asked.runs])
    assert before.calls > 0
    for frame in others:
        session.push(frame)
    assert asked == before


def test_what_is_captured_is_copied_when_it_is_replayed_and_not_before() -> None:
    device = CountedDevice()
    with device.counting() as asked:
        device.copied(3)
        device.begin()
        device.copied(4)
        device.count("copies")
        device.ran("embed", {})
        device.end(1)
        device.instantiate(1, 2)
    assert (asked.copied_bytes, asked.calls, asked.runs) == (3, 0, [])
    with device.counting() as asked:
        device.launch(2)
        device.launch(2)
    assert (asked.copied_bytes, asked.calls, asked.runs) == (8, 2, [("embed", {})] * 2)


def test_totals_are_sums() -> None:
    asked = Asked(enqueues=1, copies=2, synchronisations=3, allocations=4, frees=5)
    assert asked.calls == 15
