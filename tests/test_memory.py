"""Memories of the language side: which tokens are held, where, and what a question sees of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc.contracts import KEY, VALUE
from stc.engines.engine import Engine, Tensor
from stc.errors import LanguageError, NonFiniteError
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.language.kv_buckets import MAX_TOKENS, KvBuckets, runs
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.host_pages import PageCap
from stc.runtime.memory.rekv import RekvMemory
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.memory.window import AllMemory, RowOrder, WindowMemory
from stc.runtime.report import Prefill
from tests.kept_tokens import POOLED, frames
from tests.oracle.language import numpy_case

QUESTION = "How many objects are moving?"
TOKENS = 12


@given(
    fixed=st.integers(0, 5),
    ring=st.integers(1, 12),
    calls=st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=30),
)
def test_the_ring_holds_the_first_and_the_last_tokens_densely_numbered(
    fixed: int, ring: int, calls: list[tuple[int, bool]]
) -> None:
    order = RowOrder(fixed, ring)
    rows: dict[int, int] = {}  # row -> number of its token
    count = 0
    for tokens, succeeds in calls:
        if tokens > ring:
            continue
        places = order.place(tokens)
        assert len(set(places.tolist())) == tokens
        for row in places.tolist():
            rows.pop(row, None)
        if succeeds:
            assert np.array_equal(order.with_next(places)[places], _positions(rows, places, count))
            order.hold(places)
            rows |= dict(zip(places.tolist(), range(count, count + tokens), strict=True))
            count += tokens
        held = sorted(rows.values())
        assert order.held == len(held)
        assert held[:fixed] == list(range(min(fixed, count)))
        positions = order.positions()
        assert sorted(positions[positions >= 0].tolist()) == list(range(len(held)))
        assert all(positions[row] == held.index(number) for row, number in rows.items())
        assert order.used == max(rows, default=-1) + 1
    if count >= fixed + ring and all(succeeds for _, succeeds in calls):
        assert sorted(rows.values())[fixed:] == list(range(count - ring, count))


def _positions(rows: dict[int, int], places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    numbers = sorted([*rows.values(), *range(count, count + len(places))])
    return np.array([numbers.index(count + token) for token in range(len(places))])


@given(st.lists(st.integers(0, 30), unique=True, max_size=20))
def test_runs_cover_every_token_once(places: list[int]) -> None:
    covered = [
        (row + step, token + step)
        for row, token, count in runs(np.array(places, np.int64))
        for step in range(count)
    ]
    assert covered == [(row, token) for token, row in enumerate(places)]


def test_contexts_grow_in_few_steps_and_waste_an_eighth_at_most() -> None:
    sizes = {KvBuckets().context(rows, 32768) for rows in range(1, 32769)}
    assert len(sizes) < 60
    for rows in range(2048, 32769):
        assert rows <= KvBuckets().context(rows, 32768) <= rows * 1.125 + 1


def test_static_sizes_cover_any_chunk() -> None:
    buckets = KvBuckets(chunks=(1, 32, 58))
    for count in (1, 2, 32, 33, 58, 59, 100, 200):
        pieces = list(buckets.pieces(count))
        assert [first for first, _, _ in pieces] == list(
            np.cumsum([0, *(tokens for _, tokens, _ in pieces)])[:-1]
        )
        assert sum(tokens for _, tokens, _ in pieces) == count
        assert all(tokens <= size and size in (1, 32, 58) for _, tokens, size in pieces)


def test_a_call_of_any_size_is_bounded() -> None:
    pieces = list(KvBuckets().pieces(3025))
    assert [size for _, _, size in pieces] == [MAX_TOKENS] * 11 + [209]
    assert [first for first, _, _ in pieces] == [MAX_TOKENS * n for n in range(12)]
    assert list(KvBuckets().pieces(58)) == [(0, 58, 58)]
    assert list(KvBuckets().pieces(0)) == []


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_rows_of_a_long_question_are_given_back(policy: str) -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    model.spec = model.spec.model_copy(update={"max_positions": 4000})
    answers = []
    for lengthy in (False, True):
        language = StreamLanguage(model, _memory(policy, model, len(prompt.before)), prompt)
        language.append(frames(1)[0])
        usual = language.ask(QUESTION, TOKENS)
        list(usual)
        held = language.facts().device_bytes
        if lengthy:
            language.ask(" ".join([QUESTION] * 300), TOKENS).cancel()
            assert language.facts().device_bytes > held + 512 * model.token_bytes
        language.append(frames(2)[1])
        answer = language.ask(QUESTION, TOKENS)
        list(answer)
        assert language.facts().device_bytes <= held + 512 * model.token_bytes
        answers.append(answer.token_ids)
    assert answers[0] == answers[1]


def test_a_context_longer_than_the_engines_allow_is_refused() -> None:
    with pytest.raises(LanguageError, match="at most 64, the longest its engines were built for"):
        KvBuckets(contexts=(32, 64)).context(65, 400)


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_a_memory_that_is_full_grows_no_further(policy: str) -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    memory = _memory(policy, model, len(prompt.before), most=5)
    language = StreamLanguage(model, memory, prompt)
    sizes = []
    for index, tokens in enumerate(frames(60)):
        language.append(tokens)
        if index % 10 == 9:
            answer = language.ask(QUESTION, TOKENS)
            list(answer)
            facts = memory.facts()
            sizes.append((facts.tokens, facts.device_bytes, facts.host_bytes, answer.prompt_tokens))
    assert len(set(sizes)) == 1


def test_all_refuses_more_than_the_model_takes_and_goes_on_answering() -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    memory = AllMemory(model, fixed=len(prompt.before))
    language = StreamLanguage(model, memory, prompt)
    assert model.spec.max_positions == 400
    language.append(np.concatenate(frames(70)))
    told = language.append(np.concatenate(frames(10)))
    assert isinstance(told.error, LanguageError)
    assert "285 tokens remembered and 40 more, expected at most 300, " in str(told.error)
    assert language.append(frames(1)[0]).error is None
    assert memory.facts().tokens == 289
    with pytest.raises(LanguageError, match="question: 289 tokens of context"):
        language.ask(QUESTION, 111)
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert len(answer.token_ids) == TOKENS


def test_all_takes_no_more_than_half_of_the_memory_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    free_bytes = 2 * 50 * model.token_bytes
    monkeypatch.setattr("stc.runtime.memory.settings.available_host_bytes", lambda: free_bytes)
    memory = MemorySettings(memory="all").make(model, len(prompt.before), POOLED)
    language = StreamLanguage(model, memory, prompt)
    told = Prefill()
    for tokens in frames(13):
        told += language.append(tokens)
    assert (told.frames, told.left_out) == (11, 2)
    assert str(told.error) == (
        "--memory all: 49 tokens remembered and 4 more, "
        "expected at most 50, half of the memory that was free at the start; "
        "use --memory window or --memory rekv"
    )
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert len(answer.token_ids) == TOKENS


@pytest.mark.parametrize("prefill_every", [1, 7])
def test_all_answers_when_it_is_full(prefill_every: int) -> None:
    """However many frames were refused, there is room for a question and its answer."""
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    memory = AllMemory(model, fixed=len(prompt.before))
    language = StreamLanguage(model, memory, prompt, prefill_every)
    told = Prefill()
    for tokens in frames(100):
        told += language.append(tokens)
    answer = language.ask(QUESTION, 80)
    list(answer)
    assert len(answer.token_ids) == 80
    told += language.prefilled()
    assert isinstance(told.error, LanguageError)
    assert told.frames + told.left_out == 100
    assert told.frames * POOLED == memory.facts().tokens - len(prompt.before)


def _memory(policy: str, model: LanguageModel, fixed: int, most: int = 1000) -> WindowMemory:
    if policy == "rekv":
        return RekvMemory(model, fixed=fixed, page=POOLED, top=4, cap=PageCap(3, most, 0))
    return WindowMemory(model, fixed=fixed, window=3 * POOLED)


@pytest.mark.parametrize("policy", ["window", "rekv"])
@pytest.mark.parametrize("seen", [0, 2, 3, 7])
def test_a_frame_that_yields_nan_is_left_out_and_nothing_else(policy: str, seen: int) -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    video = frames(12)
    answers = []
    for broken in (False, True):
        language = StreamLanguage(model, _memory(policy, model, len(prompt.before)), prompt)
        for index, tokens in enumerate(video):
            if broken and index == seen:
                told = language.append(np.full_like(tokens, np.nan))
                assert isinstance(told.error, NonFiniteError)
                assert (told.frames, told.left_out) == (0, 1)
            assert language.append(tokens).left_out == 0
        answer = language.ask(QUESTION, TOKENS)
        list(answer)
        answers.append(answer.token_ids)
        assert np.isfinite(answer.logits).all()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("policy", ["window", "rekv"])
def test_a_question_right_after_a_frame_that_yields_nan_is_answered(policy: str) -> None:
    """The memory is full: what the frame wrote lies among the rows that questions multiply."""
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    language = StreamLanguage(model, _memory(policy, model, len(prompt.before)), prompt)
    for tokens in frames(6):
        language.append(tokens)
    broken = np.full_like(tokens, np.nan)
    assert language.append(broken).left_out == 1
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert len(answer.token_ids) == TOKENS
    assert np.isfinite(answer.logits).all()


class Sick:
    """An engine that yields NaN in `spoilt` while it is `armed`."""

    def __init__(self, engine: Engine, spoilt: str) -> None:
        self.name = engine.name
        self.armed = True
        self._engine, self._spoilt = engine, spoilt

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        results = self._engine(inputs, outputs)
        if self.armed:
            results[self._spoilt][:, -1] = np.nan
        return results


@pytest.mark.parametrize("spoilt", [KEY, VALUE])
def test_nan_in_what_the_last_block_remembers_is_noticed(spoilt: str) -> None:
    """Nothing of the last block is read but keys and values, so nothing else could show it."""
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    language = StreamLanguage(model, _memory("window", model, len(prompt.before)), prompt)
    first, second = frames(2)
    assert language.append(first).frames == 1
    sick = Sick(model.qkv[-1], spoilt)
    model.qkv[-1] = sick
    told = language.append(second)
    assert str(told.error).startswith(f"{sick.name}: NaN or infinity in {spoilt}")
    sick.armed = False
    answer = language.ask(QUESTION, 2)
    assert np.isfinite(answer.logits).all()
    assert answer.prompt_tokens == len(prompt.before) + POOLED + len(prompt.after(QUESTION))


def test_frames_are_left_out_when_the_prompt_cannot_be_remembered() -> None:
    case = numpy_case()
    model, prompt = case.language(), case.prompt()
    language = StreamLanguage(model, _memory("window", model, len(prompt.before)), prompt)
    sick = Sick(model.qkv[0], KEY)
    healthy, model.qkv[0] = model.qkv[0], sick
    for tokens in frames(4):
        told = language.append(tokens)
        assert (told.frames, told.left_out) == (0, 1)
    model.qkv[0] = healthy
    told = language.append(frames(1)[0])
    assert (told.frames, told.left_out) == (1, 0)
    assert language.facts().tokens == len(prompt.before) + POOLED
