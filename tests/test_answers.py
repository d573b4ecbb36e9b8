"""Answers: nothing of them stays in what the stream remembers, nothing changes them midway.

What is expected is computed from the whole sequence, anew for every token.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.errors import NonFiniteError
from stc.runtime.answers.stream_language import MAX_CALLS, StreamLanguage
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.memory.window import AllMemory, WindowMemory
from stc.runtime.report import Prefill
from tests.kept_tokens import POOLED, frames
from tests.oracle.language import NumpyCase, numpy_case

if TYPE_CHECKING:
    from tests.language_cases import LanguageCase

QUESTION = "What is moving?"
TOKENS = 24


def stream(
    case: LanguageCase | NumpyCase, buckets: KvBuckets | None = None, prefill_every: int = 1
) -> StreamLanguage:
    """A stream that remembers everything."""
    model, prompt = case.language(buckets), case.prompt()
    memory = AllMemory(model, fixed=len(prompt.before))
    return StreamLanguage(model, memory, prompt, prefill_every)


def greedy(case: NumpyCase, video: list[NDArray[np.float32]]) -> list[int]:
    """The answer to QUESTION about `video`."""
    return case.greedy(video, QUESTION, TOKENS)


@pytest.mark.parametrize("prefill_every", [2, 5])
def test_prefill_in_batches_gives_the_same_answer(prefill_every: int) -> None:
    case = numpy_case()
    language = stream(case, prefill_every=prefill_every)
    took = [language.append(tokens) for tokens in frames(9)]
    whole_calls = [prefill_every if (n + 1) % prefill_every == 0 else 0 for n in range(9)]
    assert [told.frames for told in took] == whole_calls
    assert [told.ms > 0 for told in took] == [told.frames > 0 for told in took]
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids == greedy(case, frames(9))


def test_frames_that_come_during_an_answer_do_not_change_it_and_are_seen_by_the_next() -> None:
    case = numpy_case()
    language = stream(case)
    video = frames(8)
    for tokens in video[:3]:
        language.append(tokens)
    answer = language.ask(QUESTION, TOKENS)
    for tokens in video[3:]:
        next(answer)
        assert language.append(tokens) == Prefill()
    list(answer)
    assert answer.token_ids == greedy(case, video[:3])
    after = language.ask(QUESTION, TOKENS)
    list(after)
    assert after.token_ids == greedy(case, video)
    told = language.prefilled()
    assert told.frames == 5
    assert told.ms > 0


def test_the_prompt_is_no_part_of_the_first_frames_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    case = numpy_case()
    language = stream(case)
    embed = language.model.embed

    def slow(ids: NDArray[np.int64]) -> NDArray[Any]:
        time.sleep(0.5)
        return embed(ids)

    monkeypatch.setattr(language.model, "embed", slow)
    start = time.perf_counter()
    told = language.append(frames(1)[0])
    assert (time.perf_counter() - start) * 1e3 > 500
    assert 0 < told.ms < 500


def test_frames_that_waited_are_made_up_a_few_at_a_time() -> None:
    case = numpy_case()
    language = stream(case)
    video = frames(20)
    answer = language.ask(QUESTION, TOKENS)
    for tokens in video[:12]:
        language.append(tokens)
    list(answer)
    before = language.facts().tokens
    assert before == len(case.prompt().before)
    made_up = [language.append(tokens).frames for tokens in video[12:]]
    assert made_up == [MAX_CALLS] * 4 + [1] * 4  # each call brings one frame of its own
    assert language.facts().tokens == before + 20 * POOLED


def test_an_error_of_frames_that_waited_is_no_error_of_the_answer() -> None:
    case = numpy_case()
    language = stream(case)
    video = frames(4)
    language.append(video[0])
    answer = language.ask(QUESTION, TOKENS)
    language.append(np.full_like(video[1], np.nan))
    pieces = list(answer)
    assert answer.stopped == "length"
    assert "".join(pieces) == answer.text
    told = language.append(video[2])
    assert (told.frames, told.left_out) == (1, 1)
    assert isinstance(told.error, NonFiniteError)
    after = language.ask(QUESTION, TOKENS)
    list(after)
    assert after.token_ids == greedy(case, [video[0], video[2]])


@pytest.mark.parametrize("end", ["cancel", "supersede"])
def test_an_answer_left_midway_leaves_nothing_behind(end: str) -> None:
    case = numpy_case()
    language = stream(case)
    video = frames(5)
    for tokens in video[:4]:
        language.append(tokens)
    left = language.ask("Who is there?", TOKENS)
    next(left)
    language.append(video[4])
    if end == "cancel":
        left.cancel()
        assert left.stopped == "cancelled"
    answer = language.ask(QUESTION, TOKENS)
    assert left.stopped == ("cancelled" if end == "cancel" else "superseded")
    assert list(left) == []
    list(answer)
    assert answer.token_ids == greedy(case, video)


def test_an_answer_that_keeps_the_video_waiting_too_long_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stc.runtime.answers.stream_language.MAX_WAITING", 3)
    case = numpy_case()
    language = stream(case)
    video = frames(6)
    language.append(video[0])
    answer = language.ask(QUESTION, TOKENS)
    for tokens in video[1:5]:
        language.append(tokens)
    assert answer.stopped == "video"
    language.append(video[5])
    after = language.ask(QUESTION, TOKENS)
    list(after)
    assert after.token_ids == greedy(case, video)


def test_a_window_equals_all_until_a_token_leaves_it() -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    fixed = len(prompt.before)
    memory = WindowMemory(model, fixed=fixed, window=6 * POOLED)
    language = StreamLanguage(model, memory, prompt)
    video = frames(20)
    for tokens in video[:6]:
        language.append(tokens)
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids == greedy(case, video[:6])
    for tokens in video[6:]:
        language.append(tokens)
    assert memory.facts().tokens == fixed + 6 * POOLED
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids != greedy(case, video)
    assert answer.prompt_tokens == fixed + 6 * POOLED + len(prompt.after(QUESTION))


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it() -> None:
    case = numpy_case()
    free = stream(case)
    free.append(frames(1)[0])
    unstopped = free.ask(QUESTION, TOKENS)
    list(unstopped)
    language = stream(case)
    stop = unstopped.token_ids[3]
    spec = language.model.spec.model_copy(update={"stop_token_ids": (stop,)})
    language.model.spec = spec
    language.append(frames(1)[0])
    answer = language.ask(QUESTION, TOKENS)
    text = "".join(answer)
    assert answer.stopped == "stop token"
    assert answer.token_ids == unstopped.token_ids[: unstopped.token_ids.index(stop)]
    assert unstopped.text.startswith(text)


def test_an_answer_goes_on_from_how_it_is_begun() -> None:
    """Its text is what follows alone."""
    case = numpy_case()
    language = stream(case)
    video = frames(3)
    for tokens in video:
        language.append(tokens)
    begun = "Best option: ("
    answer = language.ask(QUESTION, TOKENS, begin=begun)
    logits, text = answer.logits, str(answer)
    prompt = case.prompt()
    before, after = (
        case.decoder.text_embed(ids)[0] for ids in (prompt.before, prompt.after(QUESTION, begun))
    )
    expected = case.decoder.greedy(np.concatenate((before, *video, after)), TOKENS)
    assert answer.token_ids == expected
    assert not text.startswith(begun)
    assert answer.prompt_tokens == len(before) + 3 * POOLED + len(after)
    assert np.abs(language.ask(QUESTION, TOKENS).logits - logits).max() > 1e-3
