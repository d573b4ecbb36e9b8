"""The questions of a run, asked when they are due and answered on a stream of text.

Knows nothing of frames but their reports and their time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import IO, Any

from stc.errors import DeviceError, LanguageError, StcError, one_line, printable
from stc.runtime.answers.answer import Answer
from stc.runtime.answers.questions import Chat, Question, Questions
from stc.runtime.answers.scoring import is_right, normal
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.figures.metrics import Reservoir
from stc.runtime.language.sampling import Sampling
from stc.runtime.report import FrameReport, Prefill
from stc.shell import command

MAX_ANSWERS = 1_000
"""Answers that are held for the document; of older ones only the figures are."""
SCORES = (
    *("expected", "right", "strict"),
    *("dense_right", "dense_strict", "compared", "same_as_dense"),
)
Ask = Callable[[str, int, Sampling], str]
"""Answers a question with at most so many text tokens."""


class Conversation:
    """Asks `language` the questions of a run, and those typed in `chat`, one after the other, and
    writes the answers to `out` as they come.

    failed: questions that could not be asked or answered; each was one line in `out`'s place
        and the stream went on.
    left_out: frames that could not be remembered; the first error was told.
    error: the first error of either.
    missed: what is wrong with questions whose moment never came and whose answer is expected then,
        which are not asked; None where there are none. It is not told.
    aside: entered while an answer is written.
    `say` is told what else the user should know; `dense`, if any, answers every question too.

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
        dense: Ask | None = None,
    ) -> None:
        for question in questions.asked:
            language.check_answer(len(language.check(question.text)), questions.most)
        if chat is not None:
            language.check_answer(1, questions.most)
        self.failed = 0
        self.left_out = 0
        self.error: StcError | None = None
        self.missed: StcError | None = None
        self.language = language
        self.aside: Callable[[], AbstractContextManager[object]] = nullcontext
        self._questions = questions
        self._out = out
        self._say = say
        self._chat = chat
        self._dense = dense
        self._scores: Counter[str] = Counter()
        self._due = deque(questions.asked)
        self._missed = 0
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

    @property
    def unasked(self) -> int:
        """Questions that were not asked: those that were missed, and those still to come."""
        return self._missed + len(self._due)

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
        self._ask(Question(question))

    def ask_rest(self) -> None:
        """The stream has ended: what was not asked yet is asked, and what is typed until the
        user ends it. Of what was to be asked at a moment that never came, which is told, that is
        not asked whose answer is expected then."""
        self._finish()
        late = [one for one in self._due if self._is_late(one)]
        missed = [one for one in late if one.expected is not None]
        ended = f"the stream ended at {self._time_s:.1f} s"
        if missed:
            self._missed = len(missed)
            got = f"{ended}, {len(missed)} of them come later"
            fix = f"the first is at {missed[0].at_s:g} s: correct it, or watch more frames"
            self.missed = LanguageError("--questions", got, fix=fix)
        if asked := [one for one in late if one.expected is None]:
            count = f"{len(asked)} question{'s' * (len(asked) > 1)}"
            first = f"the first for {asked[0].at_s:g} s"
            self._say(f"{ended}; asked now, though meant for later: {count}, {first}")
        self._due = deque(one for one in self._due if one not in missed)
        while self._due:
            self._ask(self._due.popleft())
        for question in self._chat.rest() if self._chat is not None else ():
            self.ask(question)

    def _ask(self, question: Question) -> None:
        self._begin(question)
        self._finish()

    def _is_late(self, question: Question) -> bool:
        """Whether the moment of `question` has not come."""
        return question.at_s is not None and question.at_s > self._time_s

    def _next_question(self) -> Question | None:
        if not self._frames:
            return None
        if self._due and self._due[0].at_s is not None and not self._is_late(self._due[0]):
            return self._due.popleft()
        typed = None if self._chat is None else self._chat.typed()
        return None if typed is None else Question(typed)

    def _finish(self) -> None:
        while self._answer is not None:
            self._go_on(self._answer)

    def _begin(self, question: Question) -> None:
        self._beside.enter_context(self.aside())
        self._out.write(f"[{self._time_s:.1f} s] {printable(question.text)}\n> ")
        self._record = {"question": question.text, "answer": ""}
        self._record |= {"time_s": self._time_s, "frames": self._frames}
        self._record |= {"at_s": question.at_s, "beyond_end": self._is_late(question)}
        if question.expected is not None:
            self._record["expected"] = question.expected
        try:
            most, sampling = self._questions.most, self._questions.sampling
            with command.unmasked_stops():
                self._ask_dense(question.text, most, sampling)
                self._answer = self.language.ask(question.text, most, sampling)
        except StcError as error:
            self._end(error)
        except KeyboardInterrupt:
            self._record["stopped"] = "cancelled"
            self._end()
            raise

    def _ask_dense(self, text: str, most: int, sampling: Sampling) -> None:
        """What dense frames answer is recorded; that they cannot changes nothing else."""
        if self._dense is None:
            return
        try:
            self._record["dense_answer"] = self._dense(text, most, sampling)
        except DeviceError:
            raise
        except StcError as error:
            self._record["dense_error"] = str(error)
            self._say(f"dense: {error}")

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
            self.error = self.error or error
            self._record["error"] = str(error)
            self._say(f"error: {error}")
        self._out.write(f"{self._judged()}\n")
        self._out.flush()
        self._count(self.language.prefilled())
        self._asked += 1
        self._answers.append({**self._record, "memory": asdict(self.language.facts())})
        self._beside.close()
        if self._chat is not None:
            self._chat.invite()

    def _judged(self) -> str:
        """What stands beside the answer of the record, which says now whether it is right.

        An answer that was cut off is not judged; one that failed is wrong.
        """
        record, scores, told = self._record, self._scores, []
        if record.get("stopped") == "cancelled":
            return ""
        dense, expected = record.get("dense_answer"), record.get("expected")
        if expected is not None:
            scores["expected"] += 1
            told.append(f"expected {expected}: {self._mark('', record['answer'], expected)}")
            if dense is not None:
                told.append(f"dense {dense}: {self._mark('dense_', dense, expected)}")
        elif dense is not None:
            told.append(f"dense: {dense}")
        if dense is not None:
            scores["compared"] += 1
            scores["same_as_dense"] += normal(dense) == normal(record["answer"])
        return f"  [{one_line('; '.join(told))}]" if told else ""

    def _mark(self, whose: str, answer: str, expected: str) -> str:
        marks = {"right": is_right(answer, expected), "strict": answer == expected}
        for name, mark in marks.items():
            self._record[whose + name] = mark
            self._scores[whose + name] += mark
        return "right" if marks["right"] else "wrong"

    def _count(self, prefill: Prefill) -> None:
        """`prefill` is part of the figures; the first error of all is told, and what is new."""
        if prefill.error is not None and not self.left_out:
            self._say(f"error: {prefill.error}")
        self.error = self.error or prefill.error
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
        One that is `beyond_end` was asked there though its `at_s` is later; `questions_unasked`
        were not asked at all. `scores` counts questions with an `expected` answer, those answered
        `right` (strict: to the letter) here and dense, and those `compared` with dense's answer
        and the same.
        """
        return {
            "frames_prefilled": self._prefilled.frames,
            "frames_left_out": self.left_out,
            "prefill_ms_per_frame": self._prefill_ms_per_frame,
            "prefill_ms_p50": self._prefill_ms.quantile(0.5),
            "prefill_ms_p95": self._prefill_ms.quantile(0.95),
            "memory": asdict(self.language.facts()),
            "questions_asked": self._asked,
            "questions_unasked": self.unasked,
            "scores": {name: self._scores[name] for name in SCORES},
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
        scores, unasked = self._scores, self.unasked
        if unasked and not scores["expected"]:
            lines.append(f"questions not asked: {unasked}")
        if scores["expected"]:
            line = f"answers right: {scores['right']} of {scores['expected']}"
            if scores["right"] != scores["strict"]:
                line += f", to the letter {scores['strict']}"
            line += f", {unasked} not asked" * bool(unasked)
            dense = f"; dense: {scores['dense_right']} of {scores['expected']}"
            lines.append(line + dense * bool(scores["compared"]))
        if scores["compared"]:
            lines.append(f"the same as dense: {scores['same_as_dense']} of {scores['compared']}")
        return lines
