"""When an answer is right: as a person would read it, and strictly."""

from __future__ import annotations


def normal(answer: str) -> str:
    """An answer as it is compared: stripped, in lower case, without a full stop at its end."""
    return answer.strip().lower().removesuffix(".").rstrip()


def is_right(answer: str, expected: str) -> bool:
    """Whether `answer` is `expected` but for blanks around it, case and a full stop.

    Strictly it is right where both are the same text.
    """
    return normal(answer) == normal(expected)
