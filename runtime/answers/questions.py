"""Questions of a run: what is asked when, as a command line has it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from stc.errors import SettingsError
from stc.runtime.answers.stream_language import MAX_NEW_TOKENS
from stc.runtime.language.sampling import GREEDY, Sampling
from stc.shell.ranges import MAX_COUNT, flag_of, number_flag, real, whole, whole_flag


@dataclass(frozen=True)
class Question:
    """`text`, to be asked when the stream reaches `at_s` seconds; at its end when None.

    Raises SettingsError for a time that no stream reaches.
    """

    text: str
    at_s: float | None = None

    def __post_init__(self) -> None:
        if self.at_s is not None:
            at_s = real(
                "Question.at_s", self.at_s, "a finite number of seconds, 0 or more", least=0
            )
            object.__setattr__(self, "at_s", at_s)


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
    group = parser.add_argument_group("questions")
    group.add_argument(
        "--ask", action="append", default=[], metavar="TEXT", help="question at the end; repeatable"
    )
    group.add_argument(
        "--ask-at",
        action="append",
        default=[],
        metavar="SECONDS:TEXT",
        help="question when the stream gets there; repeatable",
    )
    group.add_argument(
        "--chat", action="store_true", help="ask at a prompt while the stream runs and after it"
    )
    group.add_argument(
        "--max-new-tokens",
        type=whole_flag(),
        metavar="N",
        help=f"text tokens of an answer at most, default {MAX_NEW_TOKENS}",
    )
    group.add_argument("--temperature", type=number_flag, metavar="T", help="default 0: greedy")
    group.add_argument(
        "--top-p", type=number_flag, metavar="P", help="default 1: no token left out"
    )
    group.add_argument("--seed", type=whole_flag(), metavar="N", help="of the draws, default 0")


def from_flags(flags: argparse.Namespace) -> Questions:
    """What the user asks, in order of time.

    Raises SettingsError for a flag out of range, or without anything that it could act on.
    """
    timed = sorted((_timed(text) for text in flags.ask_at), key=lambda one: one.at_s or 0.0)
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
    asked = (*timed, *(Question(text) for text in flags.ask))
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
