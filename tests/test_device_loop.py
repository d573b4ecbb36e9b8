"""The device loop on mocks of CUDA and TensorRT: each guard has a test that fails without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.contracts import COUNT, HIDDEN, KEY
from stc.engines.library.plan import Buckets
from stc.engines.library.targets import FLAVOURS, Flavour
from stc.errors import EngineError
from stc.method.family import frame_program
from stc.method.graphs import (
    EMBED,
    PIXEL_VALUES,
    SCORE,
    SELECT,
)
from tests.device_cases import (
    BUCKETS,
    SETTINGS,
    SPEC,
    Rig,
    assert_equal,
    assert_same_stream,
    frames,
    numpy_graphs,
    oracle_session,
    refusing,
)
from tests.fake_tensorrt import FakeEngine

RigMaker = Callable[..., Rig]


# What is computed.


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("selection", ["shared", "layerwise"])
@pytest.mark.parametrize("several_profiles", [True, False])
def test_captured_frames_equal_the_oracle(
    tmp_path: Path, flavour: Flavour, selection: Any, several_profiles: bool
) -> None:
    rig = Rig(tmp_path, flavour=flavour, several_profiles=several_profiles)
    session = rig.session(replace(SETTINGS, selection=selection))
    assert_same_stream(session, session.settings, 18)
    assert session.captured == {"reference", "reuse"}
    assert rig.said == []


@pytest.mark.parametrize("pruner", ["dual-anchor", "gaussian", "gaussian-fixed"])
def test_every_pruner_remembers_on_the_device_as_in_the_oracle(rig: Rig, pruner: Any) -> None:
    settings = replace(SETTINGS, pruner=pruner)
    assert_same_stream(rig.session(settings), settings, 10)


def test_a_budget_of_all_tokens_keeps_them_all(rig: Rig) -> None:
    settings = replace(SETTINGS, budget=0)
    assert_same_stream(rig.session(settings), settings, 10)


def test_every_frame_dense_needs_one_kind_of_graph(rig: Rig) -> None:
    settings = replace(SETTINGS, reference_interval=1)
    session = rig.session(settings)
    assert_same_stream(session, settings, 8)
    assert session.captured == {"reference"}


# What a frame costs the host.


def test_a_captured_frame_is_one_launch_and_one_wait_and_makes_no_memory(rig: Rig) -> None:
    session = rig.session()
    stream = frames(20)
    for frame in stream[:16]:
        session.push(frame)
    for frame in stream[16:]:
        rig.cuda.calls.clear()
        ran = len(rig.trt.runs)
        session.push(frame)
        calls = Counter(rig.cuda.calls)
        assert calls["cudaGraphLaunch"] == 1
        assert calls["cudaStreamSynchronize"] == 1
        assert not {"cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaStreamBeginCapture"} & set(
            calls
        )
        # The host waits last: everything was enqueued before.
        order = [name for name in rig.cuda.calls if name != "cudaEventElapsedTime"]
        assert order[-1] == "cudaStreamSynchronize"
        assert len(rig.trt.runs) - ran >= 2 + SPEC.blocks


def test_stage_times_are_the_devices(rig: Rig) -> None:
    session = rig.session()
    for frame in frames(12):
        report = session.push(frame)
        # The mock's clock ticks once per piece of work.
        assert report.stage_ms["vision"] > report.stage_ms["project"] > 0
        assert report.engine_ms == sum(
            report.stage_ms[name] for name in ("vision", "project", "prune")
        )


def test_nothing_is_left_on_the_gpu_after_closing(rig: Rig) -> None:
    session = rig.session()
    for frame in frames(12):
        session.push(frame)
    assert rig.cuda.executables
    session.close()
    rig.backend.close()
    cuda = rig.cuda
    held = (cuda.memory, cuda.pinned, cuda.streams, cuda.events, cuda.executables)
    assert [len(one) for one in held] == [0] * 5


# Guards.


def test_a_context_that_cannot_be_made_is_one_line(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "create_execution_context", lambda *_: None)
    with pytest.raises(EngineError, match=r"embed: TensorRT made no context; free device memory$"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: rig.backend.empty((3, 20, 20), np.float32)})


def test_a_refusal_tells_what_tensorrt_said_of_it_and_nothing_older(rig: Rig) -> None:
    rig.trt.logger.log(rig.trt.ILogger.Severity.ERROR, "something else")
    rig.trt.refuse_call = "set_tensor_address"
    with pytest.raises(EngineError, match="refused the address of pixel_values; build again"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: rig.backend.empty((3, 20, 20), np.float32)})


def test_an_engine_that_refuses_to_be_enqueued_fails_the_frame_and_not_the_next(rig: Rig) -> None:
    session, stream = rig.session(), frames(4)
    session.push(stream[0])
    rig.trt.refuse = refusing("update_01", "run")
    said = r"update_01: TensorRT did not enqueue it \(update_01 is not ready\); build again with"
    with pytest.raises(EngineError, match=said):
        session.push(stream[1])
    rig.trt.refuse = lambda *_: False
    assert session.push(stream[2]).kind == "reference"


def test_sessions_of_other_sizes_do_not_disturb_one_anothers_shapes(rig: Rig) -> None:
    wide = replace(SETTINGS, recompute_ratio=0.5, budget=5)
    sessions = [(rig.session(), oracle_session()), (rig.session(wide), oracle_session(wide))]
    for frame in frames(20):
        for session, oracle in sessions:
            assert_equal(session.push(frame), oracle.push(frame))
    assert all(session.captured == {"reference", "reuse"} for session, _ in sessions)


def test_sessions_that_share_engines_keep_their_own_streams_apart(rig: Rig) -> None:
    sessions = [(rig.session(), oracle_session()) for _ in range(3)]
    streams = [frames(14, seed) for seed in range(3)]
    for step in range(14):
        for (session, oracle), stream in zip(sessions, streams, strict=True):
            assert_equal(session.push(stream[step]), oracle.push(stream[step]))


def test_a_failed_reference_frame_leaves_the_references_that_are_read(rig: Rig) -> None:
    session, stream = rig.session(), frames(6)
    for frame in stream[:4]:
        session.push(frame)
    runner = session.runner
    references = frame_program(SPEC, "fp32", SETTINGS, "reference").of_role("reference")
    before = {one.name: runner.read(one.name) for one in references}
    rig.trt.refuse = refusing("project", "run")
    with pytest.raises(EngineError, match="project"):
        session.push(stream[4])
    assert len(before) == 3 * SPEC.blocks
    for name, values in before.items():
        np.testing.assert_array_equal(runner.read(name), values)


def test_outputs_nobody_wants_do_not_share_memory(rig: Rig) -> None:
    backend = rig.backend
    random = np.random.default_rng(0)
    hidden = random.standard_normal((SPEC.tokens, SPEC.width)).astype(np.float32)
    inputs = {HIDDEN: backend.to_device(hidden)}
    got = rig.tower.engine("reference_00")(inputs, {"attention": None})
    expected = numpy_graphs()["reference_00"](hidden)[2]
    np.testing.assert_array_equal(backend.to_host(got["attention"]), expected)


def test_an_output_may_not_be_one_of_the_inputs(rig: Rig) -> None:
    hidden = rig.backend.empty((SPEC.tokens, SPEC.width), np.float32)
    with pytest.raises(EngineError, match="output key is one of its inputs"):
        rig.tower.engine("keys_00")({HIDDEN: hidden}, {KEY: hidden})


@pytest.mark.parametrize(("shape", "dtype"), [((3, 20, 21), np.float32), ((3, 20, 20), np.float16)])
def test_a_tensor_of_another_shape_or_type_is_refused(rig: Rig, shape: Any, dtype: Any) -> None:
    with pytest.raises(EngineError, match=r"embed: pixel_values is float.*expected float32"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: rig.backend.empty(shape, dtype)})


def test_a_closed_tensor_is_refused(rig: Rig) -> None:
    pixels = rig.backend.empty((3, 20, 20), np.float32)
    pixels.close()
    with pytest.raises(EngineError, match="pixel_values is closed or of another device"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: pixels})


def test_a_size_without_an_engine_names_those_there_are(rig: Rig) -> None:
    score = rig.backend.to_device(np.zeros(SPEC.tokens, np.float32))
    count = rig.backend.to_device(np.array([7], np.int64))
    with pytest.raises(
        EngineError, match=r"select: no engine for M=7, expected M=6, M=12;.*stc-build"
    ):
        rig.tower.engine(SELECT)({SCORE: score, COUNT: count})


def test_a_tensor_of_another_rank_is_refused(rig: Rig) -> None:
    pixels = rig.backend.empty((1, 3, 20, 20), np.float32)
    with pytest.raises(EngineError, match=r"embed: pixel_values has shape \(1, 3, 20, 20\), exp"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: pixels})


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("set_optimization_profile_async", "refused profile 0"),
        ("set_input_shape", r"refused shape \(3, 20, 20\) of pixel_values"),
        ("infer_shapes", "does not know the shapes of pixel_values"),
        ("set_tensor_address", "refused the address of pixel_values"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(rig: Rig, method: str, said: str) -> None:
    rig.trt.refuse_call = method
    with pytest.raises(EngineError, match=f"embed: TensorRT {said}.*; build again with: stc-build"):
        rig.tower.engine(EMBED)({PIXEL_VALUES: rig.backend.empty((3, 20, 20), np.float32)})


@pytest.mark.parametrize(
    ("changed", "graph", "flags"),
    [
        ({"recompute_ratio": 0.1}, "select: no engine for M=2", "--recompute-ratio 0.1"),
        ({"budget": 4}, "prune_dual_anchor: no engine for k=4", "--budget 4"),
    ],
)
def test_a_session_without_its_engines_is_refused_before_it_takes_memory(
    rig: Rig, changed: dict[str, Any], graph: str, flags: str
) -> None:
    before = rig.device.allocated_bytes
    command = f"stc-build {rig.root} --target this-device --backend tensorrt {flags}"
    with pytest.raises(EngineError, match=f"{graph}.*; build it with: {command}$"):
        rig.session(replace(SETTINGS, **changed))
    assert rig.device.allocated_bytes == before


def test_a_dense_session_needs_no_engine_for_its_ratio(rig: Rig) -> None:
    settings = replace(SETTINGS, recompute_ratio=0.1, reference_interval=1)
    assert_same_stream(rig.session(settings), settings, 4)


def test_of_engines_that_share_a_size_one_is_loaded(tmp_path: Path) -> None:
    """After a build for two ratios, one of them new, both files hold the other, and the weights
    anew."""
    rig = Rig(tmp_path, builds=(BUCKETS, Buckets(recomputed=(2, 6), kept=())))
    loads = rig.trt.loaded
    assert_same_stream(rig.session(), SETTINGS, 6)
    assert [len(loads[f"update_{block:02}"]) for block in range(SPEC.blocks)] == [1] * SPEC.blocks
    other = replace(SETTINGS, recompute_ratio=0.1)
    assert_same_stream(rig.session(other), other, 6)
    assert len(loads["update_00"]) == 2


def test_an_engine_of_other_tensors_than_the_manifests_is_refused(rig: Rig) -> None:
    """An input renamed, a type changed, an output read on the host."""
    embed = rig.manifest.graphs["embed"]
    (pixels,) = embed.inputs
    for odd in (
        {"inputs": (pixels.model_copy(update={"name": "pixels"}),)},
        {"inputs": (pixels.model_copy(update={"dtype": "float16"}),)},
        {"inputs": (), "outputs": (*embed.inputs, *embed.outputs)},
    ):
        rig.trt.entries = {**rig.manifest.graphs, "embed": embed.model_copy(update=odd)}
        with pytest.raises(EngineError, match="embed: its engine disagrees with the manifest on p"):
            rig.open()
