"""Answers equal those of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from tests.kept_tokens import POOLED, frames
from tests.language_cases import LanguageCase, language_case
from tests.test_answers import QUESTION, TOKENS, stream

STATIC = KvBuckets(chunks=(1, 5), contexts=(40, 400))
"""Sizes as an engine of static shapes has them."""


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
