"""The questions of a run, asked when they are due and answered on a stream of text.

Knows nothing of frames but their reports and their time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import IO, Any

from stc.errors import StcError, printable
from stc.runtime.answers.answer import Answer
from stc.runtime.answers.questions import Chat, Questions
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.figures.metrics import Reservoir
from stc.runtime.report import FrameReport, Prefill
from stc.shell import command

MAX_ANSWERS = 1_000
"""Answers that are held for the document; of older ones only the figures are."""


class Conversation:
    """Asks `language` the questions of a run, and those typed in `chat`, one after the other, and
    writes the answers to `out` as they come.

    failed: questions that could not be asked or answered; each was one line in `out`'s place
        and the stream went on.
    left_out: frames that could not be remembered; the first error was told.
    aside: entered while an answer is written.
    `say` is told what else the user should know.

    Raises LanguageError for a question that cannot be asked, or answered as long as is asked for,
    at any time, before anything runs.
    """

    def __init__(
        self,
        language: StreamLanguage,
        questions: Questions,
        out: IO[str],
        say: Callable[[str], None],
        chat: Chat | None = None,
    ) -> None:
        for question in questions.asked:
            language.check_answer(len(language.check(question.text)), questions.most)
        if chat is not None:
            language.check_answer(1, questions.most)
        self.failed = 0
        self.left_out = 0
        self.language = language
        self.aside: Callable[[], AbstractContextManager[object]] = nullcontext
        self._questions = questions
        self._out = out
        self._say = say
        self._chat = chat
        self._due = deque(questions.asked)
        self._time_s = 0.0
        self._frames = 0
        self._prefilled = Prefill()
        self._prefill_ms = Reservoir()
        self._answer: Answer | None = None
        self._record: dict[str, Any] = {}
        self._beside = ExitStack()
        self._answers: deque[dict[str, Any]] = deque(maxlen=MAX_ANSWERS)
        self._asked = 0
        self._first_token_ms = Reservoir()
        self._tokens_per_s = Reservoir()

    @property
    def answering(self) -> bool:
        """Whether an answer is being given."""
        return self._answer is not None

    def frame(self, report: FrameReport) -> None:
        """The frame of `report` has been pushed."""
        self._time_s = report.time_s
        self._frames += 1
        if report.prefill is not None:
            self._count(report.prefill)

    def advance(self) -> bool:
        """The answer goes on by a piece, or the next question is asked; False when there is none.

        That is the next that is due at the newest frame, or else was typed. Ctrl-C ends an answer
        and is passed on.
        """
        if self._answer is not None:
            self._go_on(self._answer)
            return True
        question = self._next_question()
        if question is None:
            return False
        self._begin(question)
        return True

    def ask(self, question: str) -> None:
        """`question` is asked and answered now; a failure is told and counted."""
        self._begin(question)
        self._finish()

    def ask_rest(self) -> None:
        """The stream has ended: what was not asked yet is asked, and what is typed until the
        user ends it."""
        self._finish()
        while self._due:
            self.ask(self._due.popleft().text)
        for question in self._chat.rest() if self._chat is not None else ():
            self.ask(question)

    def _next_question(self) -> str | None:
        if self._due:
            at_s = self._due[0].at_s
            if at_s is not None and self._frames and self._time_s >= at_s:
                return self._due.popleft().text
        return None if self._chat is None else self._chat.typed()

    def _finish(self) -> None:
        while self._answer is not None:
            self._go_on(self._answer)

    def _begin(self, question: str) -> None:
        self._beside.enter_context(self.aside())
        self._out.write(f"[{self._time_s:.1f} s] {printable(question)}\n> ")
        self._record = {"question": question, "answer": ""}
        self._record |= {"time_s": self._time_s, "frames": self._frames}
        try:
            most, sampling = self._questions.most, self._questions.sampling
            with command.unmasked_stops():
                self._answer = self.language.ask(question, most, sampling)
        except StcError as error:
            self._end(error)
        except KeyboardInterrupt:
            self._end()
            raise

    def _go_on(self, answer: Answer) -> None:
        try:
            with command.unmasked_stops():
                piece = next(answer)
            self._out.write(printable(piece))
            self._out.flush()
        except StopIteration:
            self._end()
        except StcError as error:
            self._end(error)
        except KeyboardInterrupt:
            answer.cancel()
            self._end()
            raise

    @command.uninterrupted()
    def _end(self, error: StcError | None = None) -> None:
        """The answer, or what was given of it before `error`, is in the records."""
        if self._answer is not None:
            given = self._answer.to_json()
            if given["answer_tokens"]:
                self._first_token_ms.add(given["first_token_ms"])
            if given["tokens_per_s"]:
                self._tokens_per_s.add(given["tokens_per_s"])
            self._record |= given
            self._answer = None
        if error is not None:
            self.failed += 1
            self._record["error"] = str(error)
            self._say(f"error: {error}")
        self._out.write("\n")
        self._out.flush()
        self._count(self.language.prefilled())
        self._asked += 1
        self._answers.append({**self._record, "memory": asdict(self.language.facts())})
        self._beside.close()
        if self._chat is not None:
            self._chat.invite()

    def _count(self, prefill: Prefill) -> None:
        """`prefill` is part of the figures; the first error of all is told, and what is new."""
        if prefill.error is not None and not self.left_out:
            self._say(f"error: {prefill.error}")
        self.left_out += prefill.left_out
        self._prefilled += prefill
        if prefill.frames:
            self._prefill_ms.add(prefill.ms / prefill.frames)
        for notice in self.language.notices():
            self._say(notice)

    @property
    def prefill_ms(self) -> float:
        """What the prefill of all frames took so far."""
        return self._prefilled.ms

    @property
    def _prefill_ms_per_frame(self) -> float:
        return self._prefilled.ms / max(1, self._prefilled.frames)

    def to_json(self) -> dict[str, Any]:
        """What prefill took, the memory as it is now, and the newest questions with answers.

        Of `questions_asked` the last MAX_ANSWERS are there: memory does not grow with them.
        """
        return {
            "frames_prefilled": self._prefilled.frames,
            "frames_left_out": self.left_out,
            "prefill_ms_per_frame": self._prefill_ms_per_frame,
            "prefill_ms_p50": self._prefill_ms.quantile(0.5),
            "prefill_ms_p95": self._prefill_ms.quantile(0.95),
            "memory": asdict(self.language.facts()),
            "questions_asked": self._asked,
            "questions": list(self._answers),
        }

    def lines(self) -> list[str]:
        """What a summary on a terminal says of the language side."""
        facts = self.language.facts()
        kept = f"{facts.tokens} tokens in {facts.device_bytes / 1e6:,.0f} MB"
        if facts.policy == "rekv":
            kept += (
                f", {facts.host_pages} frames in {facts.host_bytes / 1e6:,.0f} MB of the host, "
                f"{facts.spilled_pages} spilled, {facts.dropped_pages} dropped"
            )
        p95 = self._prefill_ms.quantile(0.95)
        lines = [
            f"prefill {self._prefill_ms_per_frame:.1f} ms per frame (p95 {p95:.1f})",
            f"memory {facts.policy}: {kept}",
        ]
        if self.left_out:
            lines.append(f"{self.left_out} frames could not be remembered")
        if self._first_token_ms.count:
            rate = self._tokens_per_s
            told = f", {rate.mean:.1f} tokens/s" if rate.count else ""
            lines.append(f"answers: first token after {self._first_token_ms.mean:.0f} ms{told}")
        return lines
