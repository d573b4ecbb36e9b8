"""Answers of four-bit graphs, in every precision and group that the others are not tried in."""

from __future__ import annotations

import numpy as np
import pytest

from stc.manifest import Group, Precision
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.memory.window import AllMemory
from tests.kept_tokens import frames
from tests.language_cases import language_case

QUESTION = "What is moving?"


@pytest.mark.parametrize(("precision", "group"), [("fp32", 32), ("fp16", 128)])
def test_four_bit_graphs_answer_nearly_as_full_ones_do(precision: Precision, group: Group) -> None:
    case = language_case(precision=precision, int4=group)
    prompt = case.prompt()
    logits = []
    for weights in (None, "int4"):
        model = case.language(weights=weights)
        language = StreamLanguage(model, AllMemory(model, fixed=len(prompt.before)), prompt)
        for tokens in frames(5):
            assert language.append(tokens.astype(model.dtype)).frames == 1
        answer = language.ask(QUESTION, 8)
        logits.append(answer.logits)
        assert "".join(answer) == answer.text
        assert len(answer.token_ids) == 8
    full_precision, four_bits = logits
    assert not np.allclose(full_precision, four_bits)
    assert np.corrcoef(full_precision, four_bits)[0, 1] > 0.9
