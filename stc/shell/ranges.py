"""Ranges: how a value that a user or a caller gives is checked, in one way for all of them.

Flags, fields and arguments alike: the type first, then the range, in one line that names it.
"""

from __future__ import annotations

import argparse
import math
import numbers
import operator
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np

from stc.errors import SettingsError, StcError

MAX_COUNT = 1_000_000
"""Of what is counted one by one: frames, tokens of a budget or an answer, rounds."""

_DIGITS = 20
"""A longer whole number is told by its length: Python refuses to print those of thousands."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80

_Word = TypeVar("_Word", bound=str)
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?"
_NUMBER = re.compile(rf"[+-]?({_DECIMAL}|inf|nan)", re.IGNORECASE | re.ASCII)


def whole(
    subject: object,
    value: Any,
    *,
    least: int,
    most: int,
    error: type[StcError] = SettingsError,
) -> int:
    """`value` as an int: a whole number of any type that is one, numpy's too, but no truth value.

    Raises `error` about `subject` unless it is one from `least` to `most`.
    """
    try:
        number = operator.index(value)
    except Exception as cause:  # what is no number, or has an __index__ of its own that raises
        raise error(subject, f"got {shown(value)}", "a whole number") from cause
    if isinstance(value, (bool, np.bool_)):
        raise error(subject, f"got {shown(value)}", "a whole number")
    if not least <= number <= most:
        raise error(subject, f"got {shown(number)}", f"at least {least} and at most {most}")
    return number


def whole_fields(settings: object, ranges: Mapping[str, tuple[int, int]]) -> None:
    """The fields that `ranges` names, each with its least and its most, are ints in their range.

    `settings` is a dataclass that is being made, frozen or not; a field may be None whose default
    that is. Raises SettingsError naming the field's flag.
    """
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name) is not None:
            number = whole(flag_of(name), value, least=least, most=most)
            object.__setattr__(settings, name, number)


def real(
    subject: object,
    value: Any,
    expected: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = sys.float_info.max,
    error: type[StcError] = SettingsError,
) -> float:
    """`value` as a float: a real number of any type that is one, numpy's too.

    Raises `error` about `subject`, which `expected` such a value, unless it is one of at least
    `least`, more than `above` and at most `most`. NaN never is.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error(subject, f"got {shown(value)}", expected)
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf if operator.gt(value, 0) else -math.inf
    if not (least <= number <= most and above < number):
        raise error(subject, f"got {shown(value)}", expected)
    return number


def one_of(subject: object, value: object, words: Sequence[_Word]) -> _Word:
    """The one of `words` that `value` is. Raises SettingsError about `subject` unless it is one."""
    for word in words:
        if isinstance(value, str) and value == word:
            return word
    *first, last = words
    raise SettingsError(subject, f"got {shown(value)}", f"{', '.join(first)} or {last}")


def meant(value: str, names: Iterable[str], alike: float = 0.8) -> str | None:
    """The one of `names` that `value` was meant to be, if one is at least so much `alike` (0 to 1)
    in small letters and without dashes, and has the same digits: a name with a slip in it, but not
    `sm80` for `sm90`, which is another."""
    plain = {_plain(name): name for name in names if _digits(name) == _digits(value)}
    found = get_close_matches(_plain(value), list(plain), n=1, cutoff=alike)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _digits(name: str) -> str:
    return "".join(re.findall(r"[0-9]", name))


def flag_of(field: str) -> str:
    """The flag that sets the field called `field`."""
    return f"--{field.replace('_', '-')}"


def shown(value: Any) -> str:
    """`value` as an error line shows it: as Python writes it, but never long."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        return f"a whole number of {value.bit_length()} bits"
    try:
        return _SHORT.repr(value)
    except Exception:  # a value's own repr may raise, as that of a list of huge numbers
        return f"a {type(value).__name__}"


def whole_flag(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """What reads a flag's value as a whole number from `least` to `most`, of 18 digits at most.

    Python's own `int` takes `1_000`, blanks and the digits of other scripts, and stumbles over
    thousands of digits.
    """

    def read(text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise argparse.ArgumentTypeError(
                f"invalid int value: {text!r}, expected a whole number of at most 18 digits"
            )
        value = int(text)
        if (least is not None and value < least) or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"got {value}, expected {_range(least, most)}")
        return value

    return read


def number_flag(text: str) -> float:
    """A flag's value as a number: decimal, `inf` or `nan`, which whoever takes it may refuse."""
    if not _NUMBER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}, expected a number")
    return float(text)


def _range(least: int | None, most: int | None) -> str:
    bounds = [("at least", least), ("at most", most)]
    return " and ".join(f"{name} {bound}" for name, bound in bounds if bound is not None)
