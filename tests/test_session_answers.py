"""A session that is asked while frames are pushed, in one thread or in several."""

from __future__ import annotations

import threading

import pytest

from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import LanguageError
from stc.runtime.answers.stream_language import open_stream_language
from stc.runtime.memory.settings import POLICIES, MemorySettings, Policy
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from tests.kept_tokens import POOLED
from tests.language_cases import language_case
from tests.vision_cases import moving_frames

QUESTION = "What is moving?"
TOKENS = 16


def session(policy: Policy = "window") -> StreamSession:
    """A new session of the small model that keeps every token."""
    bundle = language_case().bundle
    backend = OnnxRuntimeBackend(bundle)
    language = open_stream_language(bundle, backend, MemorySettings(memory=policy), POOLED)
    tower = VisionTower(backend, bundle.manifest.vision, "fp32")
    return StreamSession(tower, PRESETS["off"], language)


def answered(stream: StreamSession) -> list[int]:
    """The token ids of a whole answer."""
    answer = stream.ask(QUESTION, TOKENS)
    list(answer)
    return answer.token_ids


def expected(frames: list[Frame]) -> list[int]:
    """The answer of a session that nobody disturbs, about `frames`."""
    stream = session()
    for frame in frames:
        stream.push(frame)
    return answered(stream)


def test_frames_pushed_during_an_answer_are_reported_and_seen_by_the_next() -> None:
    frames = moving_frames(8)
    stream = session()
    for frame in frames[:3]:
        stream.push(frame)
    answer = stream.ask(QUESTION, TOKENS)
    for frame in frames[3:6]:
        next(answer)
        report = stream.push(frame)
        assert report.prefill is not None
        assert (report.prefill.frames, report.prefill.left_out) == (0, 0)
        assert report.tokens.shape == (POOLED, 32)
    list(answer)
    assert answer.token_ids == expected(frames[:3])
    made_up = stream.push(frames[6]).prefill
    assert made_up is not None
    assert made_up.frames == 4
    stream.push(frames[7])
    assert answered(stream) == expected(frames)


def test_one_thread_asks_while_another_pushes() -> None:
    frames = moving_frames(60)
    stream = session()
    stream.push(frames[0])
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                answer = stream.ask(QUESTION, TOKENS)
                assert "".join(answer) == answer.text
                assert answer.stopped in ("length", "stop token")
        except BaseException as failure:  # told in the thread that can fail the test
            failures.append(failure)

    thread = threading.Thread(target=ask)
    thread.start()
    for frame in frames[1:]:
        stream.push(frame)
    done.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not failures
    assert answered(stream) == expected(frames)


@pytest.mark.parametrize("policy", POLICIES)
def test_after_a_question_longer_than_the_context_the_session_goes_on(policy: Policy) -> None:
    frames = moving_frames(6)
    stream = session(policy)
    for frame in frames[:5]:
        stream.push(frame)
    with pytest.raises(LanguageError, match=r"question: .* tokens of context and .* at most 400"):
        stream.ask(" ".join([QUESTION] * 100))
    with pytest.raises(LanguageError, match="at most 400, the model's longest context"):
        stream.ask(QUESTION, 1000)
    report = stream.push(frames[5])
    assert report.prefill is not None
    assert report.prefill.frames == 1
    assert answered(stream) == expected(frames)
