"""The `rekv` memory against ReKV on transformers' layers."""

from __future__ import annotations

import pytest

from tests.kept_tokens import POOLED, frames
from tests.language_cases import language_case
from tests.language_reference import ReferenceRekv
from tests.rekv_cases import rekv_stream

QUESTION = "How many objects are moving?"
TOKENS = 8


@pytest.mark.parametrize(
    ("count", "window", "top"),
    [(0, 3, 2), (1, 3, 2), (3, 3, 2), (4, 3, 2), (17, 3, 4), (17, 5, 1), (23, 4, 30), (17, 2, 16)],
)
def test_rekv_equals_the_reference(count: int, window: int, top: int) -> None:
    case = language_case()
    model = case.language()
    language, memory = rekv_stream(case, model, window=window, top=top)
    prompt = case.prompt()
    reference = ReferenceRekv(case.model, prompt.before, window=window, top=top)
    for tokens in frames(count):
        language.append(tokens)
        reference.frame(tokens)
    asked = prompt.after(QUESTION)
    expected, chosen = reference.answer(asked, TOKENS)
    for _ in range(2):  # the first answer leaves nothing the second could see
        answer = language.ask(QUESTION, TOKENS)
        list(answer)
        assert answer.token_ids == expected
        assert answer.prompt_tokens == len(prompt.before) + len(chosen[0]) * POOLED + len(asked)
    if top >= count:
        assert chosen == [list(range(count))] * model.spec.blocks
    assert memory.facts().host_pages == max(0, count - window)


def test_blocks_retrieve_different_pages() -> None:
    """Otherwise the comparison with the reference would say little about retrieval per block."""
    case = language_case()
    prompt = case.prompt()
    reference = ReferenceRekv(case.model, prompt.before, window=3, top=4)
    for tokens in frames(17):
        reference.frame(tokens)
    _, chosen = reference.answer(prompt.after(QUESTION), 1)
    assert len({tuple(numbers) for numbers in chosen}) > 1


def test_what_is_sought_may_be_other_words_than_what_is_asked() -> None:
    """As in ReKV, which looks for the bare question and asks with options around it."""
    case = language_case()
    language, _ = rekv_stream(case, case.language(), window=3, top=4)
    prompt = case.prompt()
    reference = ReferenceRekv(case.model, prompt.before, window=3, top=4)
    for tokens in frames(17):
        language.append(tokens)
        reference.frame(tokens)
    asked, sought = prompt.after(QUESTION), prompt.plain("Where is the red cup?")
    expected, chosen = reference.answer(asked, TOKENS, sought)
    assert chosen != reference.answer(asked, 1)[1]
    answer = language.ask(QUESTION, TOKENS, sought="Where is the red cup?")
    list(answer)
    assert answer.token_ids == expected
    assert answer.prompt_tokens == len(prompt.before) + 4 * POOLED + len(asked)
    longer = "What was there before the red cup came and after the blue one had left the table?"
    assert len(prompt.plain(longer)) > len(asked)
    expected, _ = reference.answer(asked, TOKENS, prompt.plain(longer))
    answer = language.ask(QUESTION, TOKENS, sought=longer)
    list(answer)
    assert answer.token_ids == expected
