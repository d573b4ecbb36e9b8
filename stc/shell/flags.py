"""What flags take: numbers within bounds, as plain digits, each refusal naming what was got."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_DECIMAL = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?"
_NUMBER = re.compile(rf"[+-]?({_DECIMAL}|inf|nan)", re.IGNORECASE | re.ASCII)


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
