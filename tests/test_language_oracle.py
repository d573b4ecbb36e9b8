"""The numpy decoder computes what the exported graphs compute."""

from __future__ import annotations

import pytest

from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.memory.window import AllMemory
from tests.kept_tokens import frames
from tests.language_cases import language_case
from tests.oracle.language import Decoder

QUESTION = "How many objects are moving?"


@pytest.mark.parametrize("tied", [True, False])
def test_it_answers_as_the_exported_graphs_do(tied: bool) -> None:
    case = language_case(tied=tied)
    prefix = "model.language_model."
    tensors = {
        name.removeprefix(prefix): tensor.detach().numpy()
        for name, tensor in case.model.state_dict().items()
        if name.startswith((prefix, "lm_head."))
    }
    exported = case.language()
    oracle = Decoder(exported.spec, tensors).model()
    prompt, answers = case.prompt(), []
    for model in (exported, oracle):
        language = StreamLanguage(model, AllMemory(model, fixed=len(prompt.before)), prompt)
        for tokens in frames(5):
            language.append(tokens)
        answer = language.ask(QUESTION, 12)
        list(answer)
        answers.append(answer)
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[1].logits == pytest.approx(answers[0].logits, rel=1e-4, abs=1e-3)
