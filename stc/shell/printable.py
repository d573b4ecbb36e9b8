"""Foreign text made fit for a terminal: no control sequence gets through, no line is endless."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 2_000
"""Characters of a line about something that went wrong; what is in the middle of longer ones is
left out."""

_ELLIPSIS = " ... "
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of controls, of bytes that are no text, and of characters that end a line."""
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What follows them looks as if it stood elsewhere. Joiners and marks stay: scripts need them."""


def printable(text: str) -> str:
    """`text` with control characters, but newlines and tabs, as Python would write them (`\\x1b`).

    Those are the characters that move a terminal's cursor, colour it, ring it, reorder or end a
    line, and stray surrogates.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text)


def one_line(text: str, most: int = LONGEST_LINE) -> str:
    """`text` as one printable line of at most `most` characters, its start and end kept.

    Its own newlines and tabs show as `\\n` and `\\t`, so that no name makes a line of its own.
    """
    if len(text) > 8 * most:
        # Nobody waits for a hundred megabytes to be looked at letter by letter.
        text = text[: 4 * most] + _ELLIPSIS + text[-4 * most :]
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(line) <= most:
        return line
    kept = most - len(_ELLIPSIS)
    return line[: kept - kept // 2] + _ELLIPSIS + line[len(line) - kept // 2 :]


def _shown(letter: str) -> str:
    if letter in "\n\t":
        return letter
    if letter in _REORDERING or unicodedata.category(letter) in _HIDDEN:
        return letter.encode("unicode_escape").decode("ascii")
    return letter
