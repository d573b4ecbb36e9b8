"""The language side on mocks of GPU and TensorRT: what it allocates, and what threads share."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")

from stc.bundles.bundle import Bundle
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import LanguageError, NonFiniteError
from stc.runtime.answers.stream_language import open_model
from stc.runtime.commands import bench as bench_command
from stc.runtime.language.captured_calls import TOGETHER
from stc.runtime.language.kv_buckets import EMPTY, MAX_SPARE
from stc.runtime.language.kv_rows import KvRows, PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.settings import Policy
from stc.runtime.planning.calibration import read_measured
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from tests.device_language import SETTINGS, Fresh, counted, kept_tokens, language_of, runtime
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import CapturableContext, Graph
from tests.onnx_device import OnnxGraphs, mock_machine
from tests.other_thread import OtherThread
from tests.test_calibration import prefill_document

QUESTION = "What is moving in the street?"
CHUNK = 64
"""The most tokens of one call."""


@pytest.fixture(scope="module")
def bundle(
    accepted_demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bundle]:
    path = shutil.copytree(accepted_demo_bundle, tmp_path_factory.mktemp("language") / "bundle")
    with pytest.MonkeyPatch.context() as monkeypatch:
        mock_machine(monkeypatch, path, "sm89")
        yield Bundle.open(path)


@pytest.fixture
def backend(bundle: Bundle) -> Iterator[TensorRtBackend]:
    opened = opening.open_backend(bundle, "cpu", "tensorrt-rtx", context=1024)
    assert isinstance(opened, TensorRtBackend)
    with opened:
        yield opened


def without_buffers(model: LanguageModel) -> None:
    """Every call of `model` makes tensors of its own."""
    model.qkv = [Fresh(engine) for engine in model.qkv]
    model.attend = [Fresh(engine) for engine in model.attend]


# What is allocated where engines run one by one.


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_buffers_that_are_used_again_change_no_answer(
    bundle: Bundle, backend: TensorRtBackend, policy: Policy
) -> None:
    """Of a frame, a question of more pieces than are kept, and its answer; two streams in turns,
    engine by engine, as a question runs that fetches what it needs."""
    found = []
    for fresh in (False, True):
        model = open_model(bundle, backend)
        model.captured = None
        if fresh:
            without_buffers(model)
        languages = [language_of(bundle, model, policy) for _ in range(2)]
        for frames in zip(kept_tokens(7), kept_tokens(7, seed=1), strict=True):
            for language, tokens in zip(languages, frames, strict=True):
                language.append(tokens)
        questions = [QUESTION, " ".join([QUESTION] * 100)]
        answers = [
            language.ask(question, 4)
            for language, question in zip(languages, questions, strict=True)
        ]
        assert answers[1].prompt_tokens > (MAX_SPARE + 1) * CHUNK
        logits: list[NDArray[Any]] = []
        for _ in range(4):
            for answer in answers:
                next(answer, "")
                logits.append(answer.logits)
        found.append((logits, [answer.token_ids for answer in answers]))
    (kept, kept_ids), (new, new_ids) = found
    np.testing.assert_array_equal(kept, new)
    assert kept_ids == new_ids


def test_buffers_of_a_long_call_are_given_back(bundle: Bundle, backend: TensorRtBackend) -> None:
    model = open_model(bundle, backend)
    model.captured = None
    rows = PlainRows(model, 1000)
    held = []
    for pieces in (1, MAX_SPARE, MAX_SPARE + 5, 2):
        rows.remember(np.zeros((pieces * CHUNK, model.spec.width), model.dtype), 0)
        held.append(backend.device.allocated_bytes)
    one, most, *later = held
    assert one < most
    assert later == [most, most]


# What a call asks of the device, once its graph is captured.

COPIES = ("cudaMemcpyAsync", "cudaMemcpy2DAsync")
MEMORY = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost")


def total(calls: Counter[str], names: Iterable[str]) -> int:
    return sum(calls[name] for name in names)


def test_a_decoded_token_is_one_graph_three_copies_and_one_wait(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    model = open_model(bundle, backend)
    rows = PlainRows(model, 100)
    rows.remember(kept_tokens(1)[0], 0)
    pageable = []
    for token in range(5):
        with counted(backend) as calls:
            rows.logits(model.embed(np.array([7 + token])), SETTINGS.budget + token)
        pageable.append(runtime(backend).pageable_copies)
    assert calls["cudaGraphLaunch"] == calls["cudaStreamSynchronize"] == 1
    # What the host says, the rows of all blocks, and the logits.
    assert (calls["cudaMemcpyAsync"], calls["cudaMemcpy2DAsync"]) == (2, 1)
    assert total(calls, MEMORY) == 0
    assert set(calls) == {"cudaGraphLaunch", "cudaStreamSynchronize", *COPIES}
    assert pageable[-1] == pageable[1]


@pytest.mark.parametrize("frames", [1, 4, 36])
def test_prefill_waits_twice_at_most_and_allocates_nothing(
    frames: int, bundle: Bundle, backend: TensorRtBackend
) -> None:
    """As many as fit one call, several calls, and more than are enqueued before the host waits."""
    model = open_model(bundle, backend)
    rows = PlainRows(model, 600)
    hidden = np.concatenate(kept_tokens(frames))
    pieces = len(list(model.buckets.pieces(len(hidden))))
    for _ in range(3):
        with counted(backend) as calls:
            rows.remember(hidden, 0)
    assert (frames, pieces) in ((1, 1), (4, 1), (36, 8))
    assert calls["cudaGraphLaunch"] == pieces
    assert calls["cudaStreamSynchronize"] == 1
    assert total(calls, COPIES) == 3 * pieces
    assert total(calls, MEMORY) == 0


def test_more_calls_than_there_are_places_for_wait_in_between(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    model = open_model(bundle, backend)
    tokens = (TOGETHER + 3) * CHUNK - 5
    hidden = np.concatenate(kept_tokens(-(-tokens // SETTINGS.budget)))[:tokens]
    rows, apart = PlainRows(model, tokens + 1), PlainRows(model, tokens + 1)
    with counted(backend) as calls:
        rows.remember(hidden, 0)
    assert calls["cudaStreamSynchronize"] == 2
    for first in range(0, tokens, CHUNK):
        apart.remember(hidden[first : first + CHUNK], first)
    ids = model.embed(np.array([7]))
    np.testing.assert_array_equal(rows.logits(ids, tokens), apart.logits(ids, tokens))


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_captured_calls_answer_as_engines_do_one_by_one(
    bundle: Bundle, backend: TensorRtBackend, policy: Policy
) -> None:
    """Windows that wrap, questions of several calls, two streams in turns."""
    found = []
    for captured in (True, False):
        model = open_model(bundle, backend)
        if not captured:
            model.captured = None
        languages = [language_of(bundle, model, policy) for _ in range(2)]
        steps: list[tuple[list[int], NDArray[Any]]] = []
        for stretch in range(3):
            for frames in zip(kept_tokens(4, seed=stretch), kept_tokens(4, 9), strict=True):
                for language, tokens in zip(languages, frames, strict=True):
                    assert language.append(tokens).error is None
            questions = (QUESTION, " ".join([QUESTION] * 20))
            answers = [
                language.ask(question, 5)
                for language, question in zip(languages, questions, strict=True)
            ]
            for _ in range(4):
                for answer in answers:
                    next(answer, "")
                    steps.append((list(answer.token_ids), answer.logits))
        found.append(steps)
    graphs, engines = found
    # Rows lie elsewhere, so that sums round otherwise, and two logits that are close are a tie.
    alike = [pair for pair in zip(graphs, engines, strict=True) if pair[0][0] == pair[1][0]]
    assert len(alike) > 0.8 * len(graphs)
    for (_, graph), (_, engine) in alike:
        np.testing.assert_allclose(graph, engine, atol=0.05)


def test_rows_that_grow_are_captured_anew(bundle: Bundle, backend: TensorRtBackend) -> None:
    model = open_model(bundle, backend)
    before, ids = kept_tokens(1)[0], model.embed(np.array([7]))
    logits, launches = [], []
    small, least = KvRows(model, model.spec.max_positions), 100
    for rows_wanted in (least, 2000, least):
        small.fit(rows_wanted) if small.capacity else small.reserve(rows_wanted)
        for start in (0, 0, 0):
            count = start + len(before)
            positions = np.full(small.capacity, EMPTY, np.int64)
            positions[: count + 1] = np.arange(count + 1)
            with counted(backend) as calls:
                model.remember(before, small, np.arange(count), positions)
                logits.append(model.logits(ids, small, np.array([count]), positions))
        launches.append(calls["cudaGraphLaunch"])
    assert launches == [2, 2, 2]
    assert len({one.tobytes() for one in logits}) <= 2  # one for each number of rows
    np.testing.assert_allclose(logits, [logits[0]] * len(logits), atol=0.05)


def test_rows_that_nobody_holds_are_given_back_with_their_graphs(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    model = open_model(bundle, backend)
    held = []
    for _ in range(3):
        rows = PlainRows(model, 100)
        for _ in range(3):
            rows.remember(kept_tokens(1)[0], 0)
        del rows
        held.append((backend.device.allocated_bytes, len(runtime(backend).executables)))
    assert held[0] == held[1] == held[2]
    assert held[0][1] == 0


def test_a_frame_that_yields_nan_is_left_out_of_captured_calls_and_nothing_else(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    """Rows of a longer call than an answer's hold what it wrote."""
    model = open_model(bundle, backend)
    answers = []
    for broken in (False, True):
        language = language_of(bundle, model)
        for number, tokens in enumerate(kept_tokens(6)):
            if broken and number == 4:
                bad = tokens.copy()
                bad[3, 5] = np.nan
                told = language.append(bad)
                assert str(told.error).startswith("the language model's input: NaN or infinity")
            assert language.append(tokens).error is None
        answer = language.ask(QUESTION, 5)
        list(answer)
        answers.append((answer.token_ids, answer.logits))
    assert answers[0][0] == answers[1][0]
    np.testing.assert_array_equal(answers[0][1], answers[1][1])


def test_what_yields_nan_in_a_captured_call_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: dict[str, Graph] = OnnxGraphs(bundle)
    whole, broken = graphs["attend_00"], [False]

    def attend(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        (found,) = whole(*arrays)
        return (found * np.float16(np.nan) if broken[0] else found,)

    mock_machine(monkeypatch, bundle.root, "sm89", {**graphs, "attend_00": attend})
    opened = opening.open_backend(bundle, "cpu", "tensorrt-rtx", context=1024)
    model = open_model(bundle, opened)
    rows = PlainRows(model, 100)
    for _ in range(3):
        rows.remember(kept_tokens(1)[0], 0)
    broken[0] = True
    with pytest.raises(NonFiniteError, match="attend_00: NaN or infinity in hidden_out"):
        rows.remember(kept_tokens(1)[0], 0)
    opened.close()


def test_buffers_change_together_or_not_at_all(
    bundle: Bundle, backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt comes while rows move to a longer context: calls address all blocks as one."""
    model = open_model(bundle, backend)
    rows = KvRows(model, model.spec.max_positions)
    rows.reserve(100)
    before = [one.address for one in (*rows.keys, *rows.values)]
    moved = []

    def write(*arguments: Any) -> None:
        moved.append(arguments)
        if len(moved) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(backend, "write_rows", write)
        with pytest.raises(KeyboardInterrupt):
            rows.reserve(2000)
    assert rows.capacity == 1024
    assert [one.address for one in (*rows.keys, *rows.values)] == before
    rows.reserve(2000)
    assert {one.shape[1] for one in (*rows.keys, *rows.values)} == {rows.capacity} == {4096}


def test_a_call_that_cannot_be_captured_is_enqueued_engine_by_engine(
    bundle: Bundle, backend: TensorRtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, logits = np.array([7]), []
    for capturable in (True, False):
        monkeypatch.setattr(CapturableContext, "is_stream_capturable", lambda *_, c=capturable: c)
        model = open_model(bundle, backend)
        rows = PlainRows(model, 100)
        for _ in range(3):
            with counted(backend) as calls:
                logits.append(rows.logits(model.embed(ids), 0))
        assert calls["cudaGraphLaunch"] == capturable
        assert calls["cudaStreamSynchronize"] == 1
        assert total(calls, MEMORY) == 0
    assert len({one.tobytes() for one in logits}) == 1


def test_the_rows_of_a_call_are_none_of_the_contexts(
    bundle: Bundle, backend: TensorRtBackend
) -> None:
    model = open_model(bundle, backend)
    assert model.spec.max_positions == max(model.buckets.contexts) - CHUNK
    assert model.buckets.context(1024 - CHUNK, 4096) == 1024
    assert model.buckets.context(1024 - CHUNK + 1, 4096) == max(model.buckets.contexts)
    rows = KvRows(model, model.spec.max_positions)
    for held in (100, model.spec.max_positions, 100):
        rows.fit(held)
        assert rows.capacity == model.buckets.context(held, model.spec.max_positions)
    with pytest.raises(LanguageError, match=f"at most {model.spec.max_positions}, the longest"):
        rows.fit(model.spec.max_positions + 1)


# Threads.


def test_an_answer_is_read_while_another_thread_captures_a_frame(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = opening.frames(None, 10)
    runs = []
    for disturbed in (False, True):
        tower = opening.open_tower(bundle, "cpu", "tensorrt-rtx", context=1024)
        assert isinstance(tower.backend, TensorRtBackend)
        language = language_of(bundle, open_model(bundle, tower.backend))
        session = StreamSession(tower, SETTINGS, language)
        session.push(clip[0])
        answer = session.ask(QUESTION, 8)
        if disturbed:
            reader = OtherThread(runtime(tower.backend), monkeypatch, partial(list, answer))
        reports = [session.push(frame) for frame in clip[1:]]
        if disturbed:
            reader.join()
        list(answer)
        runs.append(([report.tokens for report in reports], answer.token_ids))
        assert session.captured == {"reference", "reuse"}
        tower.close()
    (alone, alone_ids), (shared, shared_ids) = runs
    np.testing.assert_array_equal(shared, alone)
    assert shared_ids == alone_ids


def test_the_language_sides_times_are_a_boards(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `stc-bench --prefill` writes calibrates estimates, as what it writes of frames does."""
    properties = SimpleNamespace(name=b"NVIDIA GeForce RTX 4060")
    monkeypatch.setattr(FakeCuda, "cudaGetDeviceProperties", lambda *_: (0, properties))
    path = tmp_path / "language.json"
    flags = ["--backend", "tensorrt-rtx", "--prefill", "--frames", "1", "--context", "60"]
    assert bench_command.main([str(bundle.root), *flags, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document.keys() >= prefill_document().keys()
    assert document["gpu"].keys() >= prefill_document()["gpu"].keys()
    found = read_measured(path, bundle.manifest)
    assert found.board is not None
    assert found.board.name == "RTX 4060"
    assert set(found.ms) == {"prefill", "prefill_all", "decoded_token"}
