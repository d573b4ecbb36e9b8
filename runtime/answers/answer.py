"""One answer as it is given: an iterator of text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stc.prompts.prompt import TextStream
from stc.runtime.language.sampling import Sampler
from stc.shell.stops import unmasked_stops

Stop = Literal["", "stop token", "length", "cancelled", "superseded", "video", "error"]
"""Why an answer ended: "" not yet; at a stop token; at its token limit; on request; because another
question was asked; because the video could wait no longer; because the model failed."""

Logits = NDArray[np.float32]


class Answer(Iterator[str]):
    """Yields the text of an answer, piece by piece.

    logits: float32 [V], what the next token is, or the last was, chosen by.
    first_ms: from the question to its first token. decode_ms: what `decodes` more took.

    Each step takes the memory as it was when the question was asked. It may be left at any time:
    `cancel` gives back what it holds, and so does the end of the iteration. Threads that iterate
    together get a piece each, in the order of the text.
    """

    def __init__(
        self,
        question: str,
        logits: Logits,
        *,
        decode: Callable[[int], Logits | None],
        release: Callable[[Answer], None],
        text_stream: TextStream,
        sampler: Sampler,
        stop_token_ids: tuple[int, ...],
        most: int,
        prompt_tokens: int,
        asked_at: float,
    ) -> None:
        self.question = question
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.token_ids: list[int] = []
        self.stopped: Stop = ""
        self.first_ms = self.decode_ms = 0.0
        self.decodes = 0
        self.logits = logits
        self._decode = decode
        self._release = release
        self._text_stream = text_stream
        self._sampler = sampler
        self._stop_token_ids = stop_token_ids
        self._most = most
        self._asked_at = asked_at
        # Not `release`'s: who ends the answer may hold that one.
        self._turn = threading.Lock()

    def __next__(self) -> str:
        with self._turn:
            while not self.stopped:
                piece = self._step()
                if piece:
                    self.text += piece
                    return piece
            raise StopIteration

    def __str__(self) -> str:
        """The whole text; what was not given yet is taken now."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """The answer ends here; nothing happens if it has ended."""
        self.end("cancelled")

    def end(self, stopped: Stop) -> None:
        """The answer has ended for the reason `stopped`, unless it had already."""
        if self.stopped:
            return
        self.stopped = stopped
        self._release(self)

    @property
    def tokens_per_s(self) -> float | None:
        """Rate of the tokens after the first; None when there were none."""
        return self.decodes / self.decode_ms * 1e3 if self.decodes else None

    def to_json(self) -> dict[str, Any]:
        """The answer so far and what it cost, of dicts, strings and finite numbers."""
        return {
            "question": self.question,
            "answer": self.text,
            "stopped": self.stopped,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": len(self.token_ids),
            "first_token_ms": self.first_ms,
            "tokens_per_s": self.tokens_per_s,
        }

    def _step(self) -> str:
        """The text of the next token; an empty string where it yields none."""
        if self.token_ids:
            start = time.perf_counter()
            try:
                with unmasked_stops():
                    logits = self._decode(self.token_ids[-1])
            except BaseException as error:
                self.end("error" if isinstance(error, Exception) else "cancelled")
                raise
            if logits is None:  # ended by another thread
                return ""
            self.logits = logits
            self.decode_ms += (time.perf_counter() - start) * 1e3
            self.decodes += 1
        token = self._sampler(self.logits)
        if not self.token_ids:
            self.first_ms = (time.perf_counter() - self._asked_at) * 1e3
        if token in self._stop_token_ids:
            self.end("stop token")
            return self._text_stream.finish()
        self.token_ids.append(token)
        piece = self._text_stream.step(token)
        if len(self.token_ids) == self._most:
            self.end("length")
            piece += self._text_stream.finish()
        return piece
