"""Sessions used by several threads at once: whatever meets, the outcome is that of one after the
other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.engines.engine import Engine, Ran, Tensor
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import EngineError
from stc.method.graphs import EMBED
from stc.runtime.answers.answer import Answer
from stc.runtime.answers.stream_language import open_model, open_stream_language
from stc.runtime.language.sampling import GREEDY, Sampler
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.report import FrameReport
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from tests.device_cases import SETTINGS as DEVICE_SETTINGS
from tests.device_cases import Rig, oracle_session
from tests.device_cases import frames as device_frames
from tests.kept_tokens import POOLED
from tests.language_cases import language_case
from tests.oracle.backend import OracleBackend
from tests.session_case import SETTINGS, WEIGHTS, assert_equal, pushed
from tests.vision_cases import Exported, moving_frames, numpy_weights

QUESTION = "What is moving?"
MEETING_S = 0.3
"""How long one thread waits inside for another that should not get in."""


class Together:
    """Threads that run together; the first error of any is raised when they are joined."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []

    def start(self, body: Callable[[], object]) -> None:
        """`body` runs in a thread of its own from now on."""

        def run() -> None:
            try:
                body()
            except BaseException as failure:  # told in the thread that can fail the test
                self._failures.append(failure)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        """All have ended. Raises what one of them raised."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "two threads wait for one another"
        if self._failures:
            raise self._failures[0]


class Gate:
    """Holds the first thread that comes here until `other` is set, or MEETING_S have passed."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.other = threading.Event()

    def __call__(self) -> None:
        if not self.inside.is_set():
            self.inside.set()
            self.other.wait(MEETING_S)


class Gated(OracleBackend):
    """The oracle, whose embed graph has a gate behind it."""

    def __init__(self) -> None:
        super().__init__(*numpy_weights(WEIGHTS))
        self.gate = Gate()

    def load(self, graph: str) -> Engine:
        engine = super().load(graph)
        if graph != EMBED:
            return engine
        gate = self.gate

        class Behind:
            name = engine.name

            def __call__(
                self,
                inputs: Mapping[str, Tensor],
                outputs: Mapping[str, Tensor | None] | None = None,
            ) -> dict[str, Tensor]:
                results = engine(inputs, outputs)
                gate()
                return results

        return Behind()


def in_order(reports: list[FrameReport]) -> list[FrameReport]:
    """`reports` in the order in which the session took the frames."""
    ordered = sorted(reports, key=lambda report: report.index)
    assert [report.index for report in ordered] == list(range(len(ordered)))
    return ordered


def check_serial(session: StreamSession, gate: Gate, twin: StreamSession, two: list[Frame]) -> None:
    """Two frames of two threads, one pushed while the other is computed, equal the twin's."""
    frames = {frame.time_s: frame for frame in two}
    reports: list[FrameReport] = []
    together = Together()
    together.start(lambda: reports.append(session.push(two[0])))
    assert gate.inside.wait(60)

    def second() -> None:
        reports.append(session.push(two[1]))
        gate.other.set()

    together.start(second)
    together.join()
    for report in in_order(reports):
        assert_equal(report, twin.push(frames[report.time_s]))


def test_two_threads_push_into_one_session_as_one_would() -> None:
    """A decoder's two callbacks push at once: tokens as if one had waited for the other."""
    backend = Gated()
    tower = VisionTower(backend, WEIGHTS.spec, "fp32")
    plain = VisionTower(OracleBackend(*numpy_weights(WEIGHTS)), WEIGHTS.spec, "fp32")
    check_serial(
        StreamSession(tower, SETTINGS),
        backend.gate,
        StreamSession(plain, SETTINGS),
        moving_frames(2),
    )


def hold(session: StreamSession, gate: Gate) -> None:
    """Frames of `session` wait at `gate`, within its lock, once the GPU has computed them."""
    run = session.runner.run

    def gated(*frame: Any) -> Ran:
        ran = run(*frame)
        gate()
        return ran

    session.runner.run = gated  # type: ignore[assignment, method-assign]


def test_two_threads_push_into_one_session_on_a_device(tmp_path: Path) -> None:
    """The same where a frame is one CUDA graph: each report has its own frame's outcome."""
    session, gate = Rig(tmp_path).session(), Gate()
    hold(session, gate)
    check_serial(session, gate, oracle_session(DEVICE_SETTINGS), device_frames(2))


def test_many_threads_push_into_one_session(exported: Callable[[str], Exported]) -> None:
    """Four threads, forty frames, on ONNX Runtime: the stream is one of them in some order."""
    tower = exported("so400m heads").onnxruntime()
    settings = replace(SETTINGS, budget=4)
    session, reports, together = StreamSession(tower, settings), [], Together()
    stream = moving_frames(40)
    start = threading.Barrier(4)

    def push(share: list[Frame]) -> None:
        start.wait(60)
        reports.extend([session.push(frame) for frame in share])

    for number in range(4):
        together.start(lambda number=number: push(stream[number::4]))  # type: ignore[misc]
    together.join()
    frames = {frame.time_s: frame for frame in stream}
    taken = in_order(reports)
    serial = pushed(tower, settings, [frames[report.time_s] for report in taken])
    for got, expected in zip(taken, serial, strict=True):
        assert_equal(got, expected)


def test_two_sessions_of_one_tower_are_pushed_at_once(
    exported: Callable[[str], Exported],
) -> None:
    """Two cameras on one model, a thread each: every stream as if it were alone."""
    tower = exported("so400m heads").onnxruntime()
    streams = [
        (replace(SETTINGS, budget=4), moving_frames(20, seed=1)),
        (replace(SETTINGS, budget=3, pruner="gaussian"), moving_frames(20, seed=2)),
    ]
    alone = [pushed(tower, *stream) for stream in streams]
    reports: list[list[FrameReport]] = [[], []]
    together, start = Together(), threading.Barrier(2)

    def run(number: int) -> None:
        settings, frames = streams[number]
        session = StreamSession(tower, settings)
        start.wait(60)
        reports[number] = [session.push(frame) for frame in frames]

    for number in range(2):
        together.start(lambda number=number: run(number))  # type: ignore[misc]
    together.join()
    for got, expected in zip(reports, alone, strict=True):
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)


def test_two_streams_of_one_decoder_answer_at_once() -> None:
    """Two conversations on one model, a thread each: every answer as if it were alone."""
    bundle = language_case().bundle
    backend = OnnxRuntimeBackend(bundle)
    tower = VisionTower(backend, bundle.manifest.vision, "fp32")
    model = open_model(bundle, backend)
    prompt = language_case().prompt()

    def answered(seed: int) -> list[list[int]]:
        from stc.runtime.answers.stream_language import StreamLanguage

        memory = MemorySettings().make(model, len(prompt.before), POOLED)
        session = StreamSession(tower, PRESETS["off"], StreamLanguage(model, memory, prompt))
        told = []
        for frame in moving_frames(4, seed=seed):
            session.push(frame)
            answer = session.ask(QUESTION, 6)
            list(answer)
            told.append(answer.token_ids)
        return told

    alone = [answered(seed) for seed in (1, 2)]
    found: dict[int, list[list[int]]] = {}
    together = Together()
    for seed in (1, 2):
        together.start(lambda seed=seed: found.update({seed: answered(seed)}))  # type: ignore[misc]
    together.join()
    assert [found[1], found[2]] == alone


class Pieces:
    """A text stream whose tokens are a letter each."""

    def step(self, token: int) -> str:
        return chr(97 + token)

    def finish(self) -> str:
        return ""


def counting_answer(gate: Gate) -> Answer:
    """An answer whose every token is the one after the last, ten at most."""

    def logits(token: int) -> Any:
        return np.eye(16, dtype=np.float32)[token]

    def decode(token: int) -> Any:
        gate()
        return logits(token + 1)

    return Answer(
        "How far?",
        logits(0),
        decode=decode,
        release=lambda answer: None,
        text_stream=Pieces(),  # type: ignore[arg-type]
        sampler=Sampler(GREEDY),
        stop_token_ids=(),
        most=10,
        prompt_tokens=1,
        asked_at=0.0,
    )


def test_two_threads_read_one_answer_and_share_it() -> None:
    """A terminal and a log read the same answer: each piece goes to one of them, none twice."""
    gate = Gate()
    answer = counting_answer(gate)
    pieces = [next(answer)]
    together = Together()

    def read() -> None:
        for piece in answer:
            pieces.append(piece)
            gate.other.set()

    together.start(read)
    assert gate.inside.wait(60)
    together.start(read)
    together.join()
    assert sorted(pieces) == list("abcdefghij")
    assert answer.text == "abcdefghij"
    assert answer.token_ids == list(range(10))


def test_an_answer_is_cancelled_and_superseded_while_it_is_read() -> None:
    """Another thread asks the next question again and again: nobody waits for ever."""
    bundle = language_case().bundle
    stream = open_stream_language(bundle, OnnxRuntimeBackend(bundle), MemorySettings(), POOLED)
    together = Together()
    for _ in range(3):
        together.start(lambda: [list(stream.ask(QUESTION, 8)) for _ in range(5)])

    def cancel() -> None:
        for _ in range(5):
            stream.ask(QUESTION, 8).cancel()

    together.start(cancel)
    together.join()
    answer = stream.ask(QUESTION, 8)
    alone = open_stream_language(bundle, OnnxRuntimeBackend(bundle), MemorySettings(), POOLED)
    list(answer)
    other = alone.ask(QUESTION, 8)
    list(other)
    assert answer.token_ids == other.token_ids


def test_a_tower_closed_during_a_push_ends_with_it_or_after_it() -> None:
    """The program is shut down while a frame is computed: a report or EngineError, then errors."""
    backend = Gated()
    tower = VisionTower(backend, WEIGHTS.spec, "fp32")
    session, (first, second) = StreamSession(tower, SETTINGS), moving_frames(2)
    outcomes: list[object] = []

    def push() -> None:
        try:
            outcomes.append(session.push(first))
        except EngineError as error:
            outcomes.append(error)

    together = Together()
    together.start(push)
    assert backend.gate.inside.wait(60)
    tower.close()
    backend.gate.other.set()
    together.join()
    assert len(outcomes) == 1
    with pytest.raises(EngineError, match="is closed"):
        session.push(second)


def test_a_device_closed_during_a_push_waits_for_it(tmp_path: Path) -> None:
    """The same on TensorRT, where memory is given back: no work on freed memory."""
    rig, gate = Rig(tmp_path), Gate()
    session, outcomes = rig.session(), []
    hold(session, gate)
    together = Together()
    together.start(lambda: outcomes.append(session.push(device_frames(1)[0])))
    assert gate.inside.wait(60)
    session.close()
    gate.other.set()
    together.join()
    assert len(outcomes) == 1
    assert not rig.cuda.written_after_free()
    with pytest.raises(EngineError, match="is closed"):
        session.push(device_frames(1)[0])
