"""The language side of one scene: kept tokens are read as a stream's are, questions asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.engines.engine import Backend
from stc.errors import LanguageError
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import StreamLanguage, open_model
from stc.runtime.evaluate.data import Question
from stc.runtime.evaluate.method import Encoded
from stc.runtime.evaluate.statistics import log_probabilities
from stc.runtime.memory.settings import MemorySettings

EVERYTHING = MemorySettings(memory="all")
"""Nothing that was read is forgotten: what is lost, compression lost."""


@dataclass(frozen=True)
class Reading:
    """Answers by the number of their question.

    first: float32 [questions, V], log-probabilities of their first text tokens. prefill_ms:
    milliseconds of each frame's language call, 0 where nothing was read.
    """

    answers: list[str]
    first: NDArray[np.float32]
    prefill_ms: list[float]


class Reader:
    """The decoder of `bundle` on `backend`, with a new memory for every scene.

    Answers are greedy and at most `most` text tokens long. Raises LanguageError when the bundle has
    no language side or no prompt of its own, EngineError when a graph cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        most: int,
        memory: MemorySettings = EVERYTHING,
    ) -> None:
        self._model = open_model(bundle, backend)
        self._prompt = Prompt(bundle.companions(), spec_of(bundle), bundle.root)
        self._most, self._memory = most, memory
        self._pooled = bundle.manifest.vision.pooled
        self._unseen: dict[str, tuple[str, NDArray[np.float32]]] = {}

    def read(self, encoded: Sequence[Encoded], questions: Sequence[Question]) -> Reading:
        """The answers to `questions`, each asked when the frames up to its own have been read.

        Raises LanguageError when frames cannot be remembered or a question cannot be asked,
        EngineError or NonFiniteError when the model fails.
        """
        memory = self._memory.make(self._model, len(self._prompt.before), self._pooled)
        language = StreamLanguage(self._model, memory, self._prompt, self._memory.prefill_every)
        asked: dict[int, list[int]] = {}
        for number, question in enumerate(questions):
            asked.setdefault(question.frame, []).append(number)
        given: dict[int, tuple[str, NDArray[np.float32]]] = {}
        prefill_ms: list[float] = []
        seen = False
        for index, frame in enumerate(encoded):
            seen = seen or len(frame.tokens) > 0
            prefill_ms.append(_appended(language, frame) if len(frame.tokens) else 0.0)
            for number in asked.get(index, ()):
                given[number] = self._answer(language, questions[number].text, seen=seen)
        if len(given) < len(questions):
            raise LanguageError("questions", "some are about frames that there are not")
        ordered = [given[number] for number in range(len(questions))]
        rows = [first for _, first in ordered]
        first = np.stack(rows) if rows else np.empty((0, self._model.spec.vocabulary), np.float32)
        return Reading([answer for answer, _ in ordered], first, prefill_ms)

    def _answer(
        self, language: StreamLanguage, question: str, *, seen: bool
    ) -> tuple[str, NDArray[np.float32]]:
        # Who has seen nothing gives every question of the same words the same answer.
        if not seen and question in self._unseen:
            return self._unseen[question]
        answer = language.ask(question, self._most)
        first = log_probabilities(answer.logits)
        given = str(answer), first
        if not seen:
            self._unseen[question] = given
        return given


def _appended(language: StreamLanguage, frame: Encoded) -> float:
    """The milliseconds that it took to read `frame`. Raises when it cannot be read: nothing is
    left out of a measurement."""
    told = language.append(frame.tokens)
    if told.error is not None:
        raise told.error
    return told.ms


def spec_of(bundle: Bundle) -> LanguageSpec:
    """Of the decoder of `bundle`. Raises LanguageError when it has none."""
    spec = bundle.manifest.language
    if spec is None:
        again = bundle.export_again(answers=True)
        raise LanguageError(bundle.root, "has no language side", fix=again)
    return spec
