"""What every benchmark's questions become, and what a benchmark is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stc.runtime.evaluate.benchmarks.entries import Entry

LETTERS = "ABCDEFGH"
"""Of the options of a question, in their order."""
Rule = Literal["letter", "letter occurs", "option", "count", "yes or no", "proactive"]
"""How an answer is compared with the right one: `stc.runtime.evaluate.benchmarks.rules`."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What the score of a question takes.

    id: unlike that of every other question of the benchmark. task, category: what its score is
        averaged over; a benchmark without categories has one, "all".
    right: as `rule` compares it; empty where the right answer is not published.
    """

    id: str
    task: str
    rule: Rule
    right: str
    category: str = "all"


@dataclass(frozen=True)
class Polls:
    """When a question is repeated, in seconds: from `first` to `last`, until a yes.

    then: what is asked after the yes.
    """

    first: int
    last: int
    then: str


@dataclass(frozen=True, kw_only=True)
class Item(Scored):
    """A question about a video, ready to be asked.

    video: the file, which may be missing. from_s, until_s: seconds of it that are seen, both
        included; None for its end.
    question: all of what the user says. about: the bare question in it. begin: how the answer's
        turn begins, which the model is to continue.
    """

    video: Path
    question: str
    about: str
    from_s: float = 0.0
    until_s: float | None = None
    begin: str = ""
    polls: Polls | None = None


@dataclass(frozen=True)
class Loaded:
    """A benchmark's questions, and how many of which kind are left out and why."""

    items: tuple[Item, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


Marks = Sequence[tuple[Scored, bool]]
"""Questions, and whether they were answered right."""
Mean = Callable[[Marks], float]


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    load: its questions by its folder, or the file of its questions. row: what a line of a file of
        answers says of its question, of the number it has there. line: the least that it says.
    mean: the official figure of it all. category_mean: of a category. also: further figures, by
        name. submission: what is handed in where right answers are not published, of answers by the
        question's id.
    """

    name: str
    load: Callable[[Path], Loaded]
    row: Callable[[Entry, str], Scored]
    line: Mapping[str, str]
    mean: Mean
    category_mean: Mean
    also: Mapping[str, Mean] = field(default_factory=dict)
    submission: Callable[[Mapping[str, str | None]], str] | None = None
