"""The questions of a run, asked when they are due and answered on a stream of text.

Knows nothing of frames but their reports and their time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from stc.errors import StcError
from stc.runtime.prefill import Prefill
from stc.runtime.questions import Questions
from stc.runtime.report import FrameReport
from stc.runtime.reservoir import Reservoir
from stc.runtime.stream_language import StreamLanguage


class Conversation:
    """Asks `language` the questions of a run and writes the answers to `out` as they come.

    failed: questions that could not be asked or answered; each was one line in `out`'s place
        and the stream went on.
    left_out: frames that could not be remembered; the first error was told.
    `say` is told what else the user should know.

    Raises LanguageError for a question that cannot be asked at any time, before anything runs.
    """

    def __init__(
        self,
        language: StreamLanguage,
        questions: Questions,
        out: IO[str],
        say: Callable[[str], None],
    ) -> None:
        for question in questions.asked:
            language.check(question.text)
        self.failed = 0
        self.left_out = 0
        self.language = language
        self._questions = questions
        self._out = out
        self._say = say
        self._due = deque(questions.asked)
        self._time_s = 0.0
        self._frames = 0
        self._interrupted = False
        self._prefilled = Prefill()
        self._prefill_ms = Reservoir()
        self._answers: list[dict[str, Any]] = []

    def due(self) -> bool:
        """Whether a question is to be asked at the newest frame."""
        if not self._due:
            return False
        at_s = self._due[0].at_s
        return at_s is not None and self._time_s >= at_s

    def frame(self, report: FrameReport) -> None:
        """The frame of `report` has been pushed."""
        self._time_s = report.time_s
        self._frames += 1
        if report.prefill is not None:
            self._count(report.prefill)
        for notice in self.language.notices():
            self._say(notice)

    def ask_due(self) -> None:
        """Every question due at the newest frame is asked and answered."""
        while self.due():
            self.ask(self._due.popleft().text)

    def ask_rest(self) -> None:
        """The stream has ended: what was not asked yet is asked now."""
        while self._due:
            self.ask(self._due.popleft().text)

    def ask(self, question: str) -> None:
        """`question` is asked and answered now; a failure is told and counted."""
        self._out.write(f"[{self._time_s:.1f} s] {question}\n> ")
        record: dict[str, Any] = {"time_s": self._time_s, "frames": self._frames}
        try:
            record |= self._answered(question)
        except StcError as error:
            self.failed += 1
            record |= {"question": question, "answer": "", "error": str(error)}
            self._say(f"error: {error}")
        self._out.write("\n")
        self._out.flush()
        self._count(self.language.prefilled())
        self._answers.append({**record, "memory": asdict(self.language.facts())})
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _count(self, prefill: Prefill) -> None:
        """`prefill` is part of the figures; the first error of all is told."""
        if prefill.error is not None and not self.left_out:
            self._say(f"error: {prefill.error}")
        self.left_out += prefill.left_out
        self._prefilled += prefill
        if prefill.frames:
            self._prefill_ms.add(prefill.ms / prefill.frames)

    def _answered(self, question: str) -> dict[str, Any]:
        """The answer to `question`, written piece by piece; Ctrl-C ends it, and then the run."""
        answer = self.language.ask(question, self._questions.most, self._questions.sampling)
        try:
            for piece in answer:
                self._out.write(piece)
                self._out.flush()
        except KeyboardInterrupt:
            answer.cancel()
            self._interrupted = True
        return answer.to_json()

    @property
    def _prefill_ms_per_frame(self) -> float:
        return self._prefilled.ms / max(1, self._prefilled.frames)

    def to_json(self) -> dict[str, Any]:
        """Every question with its answer, what prefill took, and the memory as it is now."""
        return {
            "frames_prefilled": self._prefilled.frames,
            "frames_left_out": self.left_out,
            "prefill_ms_per_frame": self._prefill_ms_per_frame,
            "prefill_ms_p50": self._prefill_ms.quantile(0.5),
            "prefill_ms_p95": self._prefill_ms.quantile(0.95),
            "memory": asdict(self.language.facts()),
            "questions": self._answers,
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
        first = [one["first_token_ms"] for one in self._answers if "first_token_ms" in one]
        if first:
            rates = [one["tokens_per_s"] for one in self._answers if one.get("tokens_per_s")]
            rate = f", {sum(rates) / len(rates):.1f} tokens/s" if rates else ""
            lines.append(f"answers: first token after {sum(first) / len(first):.0f} ms{rate}")
        return lines
