"""MPEG transport streams of tests: their time stamps written anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.clips import numbered_clip

TICKS_PER_S = 90_000
_PACKET = 188
_WRAP = 1 << 33


def restamped(path: Path, move_s: Callable[[int], float]) -> Path:
    """Picture k of the video at `path` (MPEG-TS) stamped `move_s(k)` later, in place.

    Stamps have 33 bits, so they wrap round as those of a long recording do.
    """
    content = bytearray(path.read_bytes())
    number = 0
    for at in range(0, len(content), _PACKET):
        begins, has_field = content[at + 1] & 0x40, content[at + 3] & 0x20
        body = at + 4 + (1 + content[at + 4] if has_field else 0)
        if not begins or content[body : body + 3] != b"\0\0\1" or content[body + 3] & 0xF0 != 0xE0:
            continue
        both = content[body + 7] >> 6 == 3
        for place in (body + 9, body + 14)[: 1 + both]:
            _move(content, place, round(move_s(number) * TICKS_PER_S))
        number += 1
    assert number > 0
    path.write_bytes(content)
    return path


def stamped_clip(folder: Path, count: int, move_s: Callable[[int], float]) -> Path:
    """`count` pictures at 25 a second in an MPEG-TS, picture k stamped `move_s(k)` later."""
    path = numbered_clip(folder, count, "clip.ts", rate=25, codec="libx264")
    return restamped(path, move_s)


def _move(content: bytearray, at: int, ticks: int) -> None:
    """The 33 bits at `at`, which lie between marker bits, counted on by `ticks`."""
    field = int.from_bytes(content[at : at + 5], "big")
    stamp = field >> 33 << 30 & 0x1C0000000 | field >> 17 << 15 & 0x3FFF8000 | field >> 1 & 0x7FFF
    stamp = (stamp + ticks) % _WRAP
    field = (field >> 36 << 36) | (stamp >> 30) << 33 | (stamp >> 15 & 0x7FFF) << 17
    field |= (stamp & 0x7FFF) << 1 | 0x100010001
    content[at : at + 5] = field.to_bytes(5, "big")
