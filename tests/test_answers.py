"""Answers: equal to transformers', and never a trace of them in what the stream remembers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import NonFiniteError
from stc.runtime.answers.stream_language import MAX_CALLS, StreamLanguage
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.memory.window import AllMemory, WindowMemory
from stc.runtime.report import Prefill
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from tests.language_cases import POOLED, LanguageCase, frames, language_case

QUESTION = "What is moving?"
TOKENS = 24
STATIC = KvBuckets(chunks=(1, 5), contexts=(40, 400))
"""Sizes as an engine of static shapes has them."""


def stream(
    case: LanguageCase, buckets: KvBuckets | None = None, prefill_every: int = 1
) -> StreamLanguage:
    """A stream that remembers everything."""
    model, prompt = case.language(buckets), case.prompt()
    memory = AllMemory(model, fixed=len(prompt.before))
    return StreamLanguage(model, memory, prompt, prefill_every)


def greedy(
    case: LanguageCase, video: list[NDArray[np.float32]], question: str = QUESTION
) -> list[int]:
    """transformers' greedy answer to the same embeddings."""
    embeddings = _embeddings(case, video, question)
    with torch.inference_mode():
        given = case.model.generate(
            inputs_embeds=embeddings, max_new_tokens=TOKENS, do_sample=False
        )
    ids: list[int] = given[0].tolist()
    return ids


def _embeddings(case: LanguageCase, video: list[NDArray[np.float32]], question: str) -> Any:
    prompt = case.prompt()
    embed = case.model.get_input_embeddings()
    parts = [embed(torch.from_numpy(prompt.before))]
    parts += [torch.from_numpy(tokens) for tokens in video]
    parts += [embed(torch.from_numpy(prompt.after(question)))]
    return torch.cat(parts)[None].detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("buckets", [None, STATIC], ids=["any size", "static sizes"])
def test_answers_equal_transformers_greedy_generate(tied: bool, buckets: KvBuckets | None) -> None:
    case = language_case(tied=tied)
    language = stream(case, buckets)
    video = frames(9)
    for first, last in ((0, 0), (0, 1), (1, 9)):  # the first question before any frame
        for tokens in video[first:last]:
            language.append(tokens)
        answer = language.ask(QUESTION, TOKENS)
        text = "".join(answer)
        assert answer.token_ids == greedy(case, video[:last])
        assert answer.text == text


def test_logits_equal_transformers() -> None:
    case = language_case()
    language = stream(case)
    video = frames(6)
    for tokens in video:
        language.append(tokens)
    with torch.inference_mode():
        expected = case.model(inputs_embeds=_embeddings(case, video, QUESTION)).logits[0, -1]
    answer = language.ask(QUESTION)
    assert np.abs(answer.logits - expected.numpy()).max() < 1e-3


def test_a_video_prompt_of_transformers_is_the_stream_and_its_newline_row() -> None:
    """transformers appends `image_newline` once per video; a stream has no end to put it at. With
    that row appended by hand, pixels in and text out are the same."""
    case = language_case()
    backend = OnnxRuntimeBackend(case.bundle)
    tower = VisionTower(backend, case.bundle.manifest.vision, "fp32")
    language = stream(case)
    random = np.random.default_rng(3)
    preprocess = Preprocessor(tower.spec)
    session = StreamSession(tower, PRESETS["off"])
    pixels = []
    for index in range(4):
        rgb = random.integers(0, 256, (16, 16, 3), np.uint8)
        language.append(session.push(Frame(index=index, time_s=float(index), rgb=rgb)).tokens)
        pixels.append(preprocess(rgb).copy())
    newline = case.model.model.image_newline.detach().numpy()
    language.append(newline[None])
    answer = language.ask(QUESTION, TOKENS)
    for _ in answer:
        pass

    prompt = case.prompt()
    video = [case.model.config.video_token_index] * (4 * POOLED + 1)
    ids = [*prompt.before, *video, *prompt.after(QUESTION)]
    with torch.inference_mode():
        given = case.model.generate(
            input_ids=torch.tensor(ids)[None],
            pixel_values_videos=torch.from_numpy(np.stack(pixels))[None],
            max_new_tokens=TOKENS,
            do_sample=False,
        )
    assert answer.token_ids == given[0, len(ids) :].tolist()


@pytest.mark.parametrize("prefill_every", [2, 5])
def test_prefill_in_batches_gives_the_same_answer(prefill_every: int) -> None:
    case = language_case()
    language = stream(case, prefill_every=prefill_every)
    took = [language.append(tokens) for tokens in frames(9)]
    whole_calls = [prefill_every if (n + 1) % prefill_every == 0 else 0 for n in range(9)]
    assert [told.frames for told in took] == whole_calls
    assert [told.ms > 0 for told in took] == [told.frames > 0 for told in took]
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids == greedy(case, frames(9))


def test_frames_that_come_during_an_answer_do_not_change_it_and_are_seen_by_the_next() -> None:
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
    case = language_case()
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
