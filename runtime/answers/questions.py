"""Questions of a run: given as flags, or typed at a terminal while it runs."""

from __future__ import annotations

import argparse
import io
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stc.errors import SettingsError
from stc.runtime.answers.stream_language import MAX_NEW_TOKENS
from stc.runtime.language.sampling import GREEDY, Sampling
from stc.shell.ranges import MAX_COUNT, flag_of, number_flag, whole, whole_flag

HINT = "ask a question and press Enter; Ctrl-D ends the questions, Ctrl-C the stream"
SIGN = "? "
"""Shown where a question can be typed."""


@dataclass(frozen=True)
class Question:
    """`text`, to be asked when the stream reaches `at_s` seconds; at its end when None.

    expected: the right answer then, None where nobody said. Such a question is asked at its moment
        or not at all: what is right may change.
    """

    text: str
    at_s: float | None = None
    expected: str | None = None


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a run asks, and how it is answered: at most `most` new text tokens each.

    Raises SettingsError for a `most` out of range.
    """

    asked: tuple[Question, ...] = ()
    most: int = MAX_NEW_TOKENS
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        most = whole("--max-new-tokens", self.most, least=1, most=MAX_COUNT)
        object.__setattr__(self, "most", most)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `Questions`; read them with `from_flags`."""
    add = parser.add_argument_group("questions").add_argument
    add("--ask", action="append", metavar="TEXT", help="question at the end; repeatable")
    add(
        "--ask-at",
        action="append",
        metavar="SECONDS:TEXT",
        help="question when the stream gets there, or at its end; repeatable",
    )
    add(
        "--questions",
        type=Path,
        metavar="FILE",
        help='JSON list of {"at_s": 12.5, "question": "...", "expected": "..."}; what is expected '
        "may be left out, and is compared with the answer where it is not",
    )
    add("--chat", action="store_true", help="ask at a prompt while the stream runs and after it")
    most = f"text tokens of an answer at most, default {MAX_NEW_TOKENS}"
    add("--max-new-tokens", type=whole_flag(), metavar="N", help=most)
    add("--temperature", type=number_flag, metavar="T", help="default 0: greedy")
    add("--top-p", type=number_flag, metavar="P", help="default 1: no token left out")
    add("--seed", type=whole_flag(), metavar="N", help="of the draws, default 0")


def from_flags(flags: argparse.Namespace, listed: Sequence[Question] = ()) -> Questions:
    """What the user asks, in order of time; `listed` is what the file of --questions holds.

    Raises SettingsError for a flag out of range, or without anything that it could act on.
    """
    given = (*listed, *(_timed(text) for text in flags.ask_at or ()))
    timed = sorted(given, key=lambda one: one.at_s or 0.0)
    drawing = {
        name: value
        for name in ("temperature", "top_p", "seed")
        if (value := getattr(flags, name)) is not None
    }
    sampling = Sampling(**drawing)
    for name in ("top_p", "seed"):
        if name in drawing and not sampling.temperature:
            raise SettingsError(flag_of(name), "requires --temperature above 0")
    most = MAX_NEW_TOKENS if flags.max_new_tokens is None else flags.max_new_tokens
    asked = (*timed, *(Question(text) for text in flags.ask or ()))
    return Questions(asked=asked, most=most, sampling=sampling)


ANSWERING = ("max_new_tokens", "temperature", "top_p", "seed")
"""Flags that say how questions are answered, so that they need one."""


def _timed(text: str) -> Question:
    seconds, colon, question = text.partition(":")
    try:
        at_s = number_flag(seconds)
    except argparse.ArgumentTypeError:
        at_s = -1.0
    if not colon or not 0.0 <= at_s < float("inf"):
        raise SettingsError("--ask-at", f"got {text!r}", "SECONDS:TEXT, such as 12.5:What is it?")
    return Question(question, at_s)


class Chat:
    """The lines a user types, without waiting for them; the sign to type goes to `shown`, stderr.

    Raises SettingsError when `typed`, stdin, is not a terminal.
    """

    def __init__(self, typed: IO[str] | None = None, shown: IO[str] | None = None) -> None:
        given: IO[str] | None = typed or sys.stdin  # None when it was closed
        if given is None or not given.isatty():
            raise SettingsError("--chat", "stdin is no terminal", fix="use --ask TEXT")
        if isinstance(given, io.TextIOWrapper):
            # A letter in another encoding than the terminal's is no reason to stop listening.
            given.reconfigure(errors="replace")
        self._typed = given
        self._shown = shown or sys.stderr
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        # A daemon: nothing can end a read of a terminal that nobody types at.
        threading.Thread(target=self._read, daemon=True).start()

    def invite(self) -> None:
        """The sign to type is shown, unless the user has ended the conversation."""
        if not self._ended:
            self._shown.write(SIGN)
            self._shown.flush()

    def typed(self) -> str | None:
        """The next question that was typed; None when there is none yet, or none will follow."""
        return None if self._lines.empty() else self._next()

    def rest(self) -> Iterator[str]:
        """Every question until the user ends the conversation."""
        while (line := self._next()) is not None:
            yield line

    def _next(self) -> str | None:
        line = self._lines.get()
        if line is None:
            self._ended = True
            self._lines.put(None)  # the end stays the end
        return line

    def _read(self) -> None:
        try:
            for line in self._typed:
                if line.strip():
                    self._lines.put(line.strip())
        except OSError:
            pass  # the terminal is gone, which ends the questions too
        finally:
            self._lines.put(None)
