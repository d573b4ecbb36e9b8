"""When an answer is right: strictly, as a benchmark's own code has it, and leniently.

The lenient reading takes what a person would: `B.`, `(b)` and `The answer is B` are all B. It is
told beside the strict one, never in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stc.runtime.evaluate.benchmarks.item import LETTERS, Rule, Scored

LATE_S = 2
"""How far from the right second a proactive answer may come."""

_AT_START = re.compile(rf"\(?([{LETTERS}])(?:[).:,]|\s*$)", re.IGNORECASE)
_SAID = re.compile(rf"(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([{LETTERS}])(?![\w'])")
_ALONE = re.compile(rf"(?<![\w'])([{LETTERS}])(?![\w']|\s[a-z])")
_YES_NO = re.compile(r"\b(yes|no|y|n)\b", re.IGNORECASE)
_PROACTIVE = re.compile(r"(\d{1,9}): (.*)", re.DOTALL | re.ASCII)


def strict(question: Scored, answer: str | None) -> bool:
    """Whether the benchmark's own code takes `answer`; None is no answer, and wrong."""
    return answer is not None and _STRICT[question.rule](answer, question.right)


def lenient(question: Scored, answer: str | None) -> bool:
    """Whether a person would take `answer`."""
    return answer is not None and _LENIENT[question.rule](answer, question.right)


def letter_of(answer: str) -> str | None:
    """The letter of the option that `answer` names; None where it names none, or several.

    Only the last line that is not blank counts.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if not lines:
        return None
    line = lines[-1]
    found = _AT_START.match(line) or _SAID.search(line)
    if found is not None:
        return found[1].upper()
    alone = set(_ALONE.findall(line))
    return alone.pop() if len(alone) == 1 else None


def option_of(answer: str) -> str:
    """The letter that ReKV's code takes: that before the first `)`, else the first."""
    text = answer.strip()
    place = text.find(")")
    return text[max(0, place - 1) : place] if place >= 0 else text[:1]


def proactive_answer(second: int, text: str) -> str:
    """The answer of a question that was repeated until `second`, as one text."""
    return f"{second}: {text}"


def _is_letter(answer: str, right: str) -> bool:
    return answer.strip() == right


def _letter_occurs(answer: str, right: str) -> bool:
    return right in answer


def _is_option(answer: str, right: str) -> bool:
    return option_of(answer) == right


def _is_count(answer: str, right: str) -> bool:
    return "".join(re.findall(r"\d+", answer, re.ASCII)) == right


def _is_yes_no(answer: str, right: str) -> bool:
    return right in answer or answer == right[0]


def _is_proactive(answer: str, right: str) -> bool:
    given, expected = _PROACTIVE.fullmatch(answer), _PROACTIVE.fullmatch(right)
    if given is None or expected is None:
        return False
    return abs(int(given[1]) - int(expected[1])) <= LATE_S and expected[2] in given[2]


def _names_letter(answer: str, right: str) -> bool:
    return letter_of(answer) == right


def _names_option(answer: str, right: str) -> bool:
    return (letter_of(answer) or option_of(answer)) == right


def _first_count(answer: str, right: str) -> bool:
    found = re.search(r"\d+", answer, re.ASCII)
    return found is not None and found[0].lstrip("0") == right.lstrip("0")


def _first_yes_no(answer: str, right: str) -> bool:
    found = _YES_NO.search(answer)
    return found is not None and found[1][0].upper() == right[0]


def _lenient_proactive(answer: str, right: str) -> bool:
    return _is_proactive(answer.lower(), right.lower())


_Compare = Callable[[str, str], bool]
_STRICT: dict[Rule, _Compare] = {
    "letter": _is_letter,
    "letter occurs": _letter_occurs,
    "option": _is_option,
    "count": _is_count,
    "yes or no": _is_yes_no,
    "proactive": _is_proactive,
}
_LENIENT: dict[Rule, _Compare] = {
    "letter": _names_letter,
    "letter occurs": _names_letter,
    "option": _names_option,
    "count": _first_count,
    "yes or no": _first_yes_no,
    "proactive": _lenient_proactive,
}
