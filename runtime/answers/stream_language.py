"""One stream's language side: kept tokens in, answers out.

The language forward over the kept tokens of a frame is its prefill; it runs when `prefill_every`
frames have come together. A question is run behind what is remembered, in rows that are no part of
the memory, and so is its answer: after it the memory is what it was before.

While an answer is being given, frames wait. They are made up a few at a time with the frames that
come after it, all of them before the next question: the end of an answer costs nothing and cannot
fail. The answer sees the video as it was when it was asked. Every method may be called from any
thread: each takes a lock, the backend's where that takes one thread at a time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.bundles.bundle import Bundle
from stc.bundles.text_table import text_table
from stc.engines.engine import Backend, lock_of
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import DeviceError, LanguageError, SettingsError, StcError
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt
from stc.runtime.answers.answer import Answer, Logits
from stc.runtime.language.kv_buckets import EMPTY, KvBuckets
from stc.runtime.language.model import LanguageModel
from stc.runtime.language.sampling import GREEDY, Sampler, Sampling
from stc.runtime.memory.settings import MAX_TOGETHER, MemorySettings
from stc.runtime.memory.window import Context, MemoryFacts, WindowMemory, refuse_long
from stc.runtime.report import Prefill
from stc.shell.ranges import MAX_COUNT, shown, whole
from stc.shell.stops import unmasked_stops

MAX_NEW_TOKENS = 128
"""Text tokens of an answer, unless the caller says otherwise."""
MAX_WAITING = 64
"""Frames that may wait for an answer's end; one more ends it."""
MAX_CALLS = 4
"""Language calls that one more frame may cost while others have waited."""


class StreamLanguage:
    """What one stream's decoder remembers, and the answers it gives.

    `prompt` None: tokens are remembered, questions refused. Raises SettingsError for a
    `prefill_every` out of range.
    """

    def __init__(
        self,
        model: LanguageModel,
        memory: WindowMemory,
        prompt: Prompt | None,
        prefill_every: int = 1,
    ) -> None:
        self.model = model
        self._memory = memory
        self._prompt = prompt
        self.prefill_every = whole("--prefill-every", prefill_every, least=1, most=MAX_TOGETHER)
        self._waiting: list[NDArray[Any]] = []
        self._untold = Prefill()
        self._begun = False
        self._answer: Answer | None = None
        self._lock = lock_of(model.backend)

    def beside(self, settings: MemorySettings, kept: int) -> StreamLanguage:
        """The language side of another stream, of `kept` tokens per frame: the same decoder and
        prompt, a memory of its own. Raises SettingsError when `settings` do not fit."""
        before = () if self._prompt is None else self._prompt.before
        memory = settings.make(self.model, len(before), kept)
        return StreamLanguage(self.model, memory, self._prompt, settings.prefill_every)

    def append(self, tokens: NDArray[Any]) -> Prefill:
        """The kept tokens [k, D] of the next frame are remembered, or wait for more frames.

        Returns what has been remembered since this was last told. Frames that cannot be
        (LanguageError, EngineError, NonFiniteError) are left out and everything else goes on: the
        error is told, not raised. Raises DeviceError, after which nothing can go on.
        """
        kept = np.array(tokens)
        width = self.model.spec.width
        if kept.ndim != 2 or kept.shape[1] != width or kept.dtype.kind != "f":
            got = f"{kept.dtype} {list(kept.shape)}"
            raise LanguageError("tokens of a frame", got, f"floats [k, {width}]")
        with self._lock:
            self._waiting.append(kept)
            if self._answer is not None and len(self._waiting) > MAX_WAITING:
                self._answer.end("video")
            if self._answer is None:
                calls = min(MAX_CALLS, len(self._waiting) // self.prefill_every)
                for _ in range(calls):
                    self._remember_next()
            return self.prefilled()

    def prefilled(self) -> Prefill:
        """What has been remembered and left out since this was last told."""
        with self._lock:
            told, self._untold = self._untold, Prefill()
            return told

    def ask(
        self,
        question: str,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling = GREEDY,
        *,
        begin: str = "",
        sought: str = "",
    ) -> Answer:
        """The answer to `question`, about to be given; its first token is known.

        begin: how the answer begins; its text is what follows. sought: what a memory that fetches
        frames looks for, all of the question where it is empty; other memories have no use for it.

        It sees every frame appended before, but those that could not be remembered. An answer
        that is still being given ends. Raises LanguageError for a question that cannot
        be asked, SettingsError for a `max_new_tokens` or `sampling` out of range, EngineError or
        NonFiniteError when the model fails or was closed; the stream goes on in any case.
        """
        asked_at = time.perf_counter()
        most = whole("--max-new-tokens", max_new_tokens, least=1, most=MAX_COUNT)
        if not isinstance(sampling, Sampling):
            raise SettingsError(
                "sampling",
                f"got {shown(sampling)}",
                "a stc.runtime.Sampling",
                "make one with Sampling(temperature=0.7)",
            )
        prompt, ids = self._prompted(), self.check(question, begin)
        looked_for = prompt.plain(sought)
        with self._lock:
            self.model.backend.refuse_closed()
            if self._answer is not None:
                self._answer.end("superseded")
            self._remember_waiting()
            self._begin()
            context = self._memory.context(max(len(ids), len(looked_for)))
            refuse_long(self.model, context.start_position, len(ids) + most)
            text = _Text(self.model, context)
            if len(looked_for):
                text.seek(looked_for)
            answer = Answer(
                question,
                text.run(ids),
                decode=lambda token: self._decode(text, token),
                release=lambda ended: self._release(text, ended),
                text_stream=prompt.text_stream(),
                sampler=Sampler(sampling),
                stop_token_ids=self.model.spec.stop_token_ids,
                most=most,
                prompt_tokens=context.start_position + len(ids),
                asked_at=asked_at,
            )
            self._answer = answer
            return answer

    def check(self, question: object, begin: str = "") -> NDArray[np.int64]:
        """The text tokens of `question`, and of how its answer begins.

        Raises LanguageError when it could not be asked whatever is remembered.
        """
        if not isinstance(question, str):
            raise LanguageError("question", f"got {shown(question)}", "text, a str")
        return self._prompted().after(question, begin)

    def check_answer(self, question_tokens: int, max_new_tokens: int) -> None:
        """Raise LanguageError when so long an answer to a question of so many text tokens cannot
        be given whatever is remembered."""
        text = len(self._prompted().before) + question_tokens
        refuse_long(self.model, text - question_tokens, question_tokens + 1)
        positions = self.model.spec.max_positions
        if text + max_new_tokens > positions:
            left = f"at most {positions - text}, what a question leaves of the model's {positions}"
            raise LanguageError("--max-new-tokens", f"got {max_new_tokens}", f"{left} positions")

    def facts(self) -> MemoryFacts:
        """What is remembered now."""
        with self._lock:
            return self._memory.facts()

    def notices(self) -> list[str]:
        """What the user should know and has not been told yet."""
        with self._lock:
            return self._memory.notices()

    def _prompted(self) -> Prompt:
        if self._prompt is None:
            raise LanguageError(
                "question", "no tokenizer in the bundle", fix="export from a checkpoint with one"
            )
        return self._prompt

    def _begin(self) -> None:
        """The text tokens before the video are remembered, once."""
        if self._begun:
            return
        if self._prompt is not None and len(self._prompt.before):
            self._memory.remember(self.model.embed(self._prompt.before))
        self._begun = True

    def _remember_waiting(self) -> None:
        while self._waiting:
            self._remember_next()

    def _remember_next(self) -> None:
        """The next frames that wait are remembered in one call, or left out."""
        frames = self._waiting[: self.prefill_every]
        del self._waiting[: self.prefill_every]
        try:
            self._begin()
            start = time.perf_counter()
            with unmasked_stops():
                self._memory.remember(np.concatenate(frames))
        except DeviceError:
            raise
        except StcError as error:
            self._untold += Prefill(left_out=len(frames), error=error)
        else:
            took_ms = (time.perf_counter() - start) * 1e3
            self._untold += Prefill(frames=len(frames), ms=took_ms)

    def _decode(self, text: _Text, token: int) -> Logits | None:
        """Logits after `token`; None when the answer has ended and its rows serve others."""
        with self._lock:
            if text.closed:
                return None
            self.model.backend.refuse_closed()
            return text.run(np.array([token], np.int64))

    def _release(self, text: _Text, ended: Answer) -> None:
        with self._lock:
            text.closed = True
            if self._answer is ended:
                self._answer = None


class _Text:
    """Text tokens behind a context: rows that are written once and belong to no memory."""

    def __init__(self, model: LanguageModel, context: Context) -> None:
        self.closed = False
        self._model = model
        self._context = context
        self._positions = context.positions
        self._count = 0
        self._retrieve = context.retrieve

    def seek(self, ids: NDArray[np.int64]) -> None:
        """What is retrieved is what the text tokens `ids` look for; they are forgotten again."""
        if self._retrieve is None:
            return
        self.run(ids)
        places = self._context.start_row + np.arange(len(ids))
        self._positions[places] = EMPTY
        self._context.rows.clear(places)
        self._count = 0

    def run(self, ids: NDArray[np.int64]) -> Logits:
        """Logits [V] after the text tokens `ids`, which follow those of earlier runs."""
        context, rows = self._context, self._context.rows
        places = context.start_row + self._count + np.arange(len(ids))
        rows.reserve(int(places[-1]) + 1)
        longer = rows.capacity - len(self._positions)
        self._positions = np.pad(self._positions, (0, longer), constant_values=EMPTY)
        self._positions[places] = context.start_position + self._count + np.arange(len(ids))
        try:
            hidden = self._model.embed(ids)
            logits = self._model.logits(hidden, rows, places, self._positions, self._retrieve)
        except BaseException:
            rows.clear(places)
            raise
        # What is retrieved for the question serves its answer too.
        self._retrieve = None
        self._count += len(ids)
        return logits


def open_model(bundle: Bundle, backend: Backend) -> LanguageModel:
    """The decoder of `bundle`; where engines have static sizes, its context is their longest, but
    for the rows that a call's own tokens take.

    Raises LanguageError when it was exported without one, EngineError when a graph cannot be
    loaded, BundleError when a file is not as the manifest says.
    """
    spec, precision = _spec(bundle), bundle.manifest.provenance.precision
    table = text_table(bundle, spec)
    if not isinstance(backend, TensorRtBackend):
        return LanguageModel(backend, spec, precision, table)
    attend = contracts.attend_graph(0)
    chunks, contexts = backend.sizes(attend, "m"), backend.sizes(attend, "S")
    buckets = KvBuckets(chunks, contexts, fresh=chunks[-1])
    longest = min(spec.max_positions, contexts[-1] - chunks[-1])
    spec = spec.model_copy(update={"max_positions": longest})
    return LanguageModel(backend, spec, precision, table, buckets)


def open_stream_language(
    bundle: Bundle, backend: Backend, settings: MemorySettings, kept: int
) -> StreamLanguage:
    """The language side of one stream that keeps `kept` = k tokens per frame, able to answer.

    Raises LanguageError when the bundle has no language side or no prompt of its own,
    SettingsError when `settings` do not fit, EngineError when a graph cannot be loaded.
    """
    prompt = Prompt(bundle.companions(), _spec(bundle), bundle.root)
    model = open_model(bundle, backend)
    memory = settings.make(model, len(prompt.before), kept)
    return StreamLanguage(model, memory, prompt, settings.prefill_every)


def _spec(bundle: Bundle) -> LanguageSpec:
    spec = bundle.manifest.language
    if spec is None:
        again = bundle.export_again(answers=True)
        raise LanguageError(bundle.root, "has no language side", fix=again)
    return spec
