"""How long a video file says it is, by the containers that do: whether it was cut off."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_SEGMENT = 0x18538067
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_HEAD_BYTES = 4096
"""Within these ASF and FLV say their size."""
_LARGEST_BYTES = 1 << 53
_MAX_PARTS = 100_000
"""A file of more boxes or chunks does not say its size: walking through them takes long."""
_INDICES = (b"moov", b"moof", b"meta")
"""Without one of these boxes the pictures of an MP4 cannot be found."""


def is_cut_off(path: str | Path) -> bool:
    """Whether the file ends before its container says it does.

    MP4 and MOV, Matroska and WebM, AVI, ASF (WMV) and FLV say; others, and what was recorded
    live, do not, and count as whole, as does what is no regular file here.
    """
    path = Path(path)
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            declared = declared_size(file)
            return declared is not None and declared > file.seek(0, os.SEEK_END)
    except (OSError, ValueError):
        return False  # gone meanwhile, or no path at all


def declared_size(file: BinaryIO) -> int | None:
    """Bytes that the container in `file` says it has, at least; None when it does not say."""
    head = file.read(_HEAD_BYTES)
    for place, starts, size in _CONTAINERS:
        if head[place:].startswith(starts):
            return size(file, head)
    return None


def _boxes(file: BinaryIO, head: bytes) -> int | None:
    """MP4: boxes one after the other, each with its size and four letters."""
    size = file.seek(0, os.SEEK_END)
    place = 0
    kinds: set[bytes] = set()
    for _ in range(_MAX_PARTS):
        if place + 8 > size:
            # A recorder writes the index last. Whatever is cut off, a box at least is missing.
            is_indexed = b"mdat" not in kinds or not kinds.isdisjoint(_INDICES)
            return place if is_indexed or place > size else place + 8
        file.seek(place)
        box = file.read(16)
        length, kind = int.from_bytes(box[:4], "big"), box[4:8]
        if length == 1:
            length = int.from_bytes(box[8:], "big")
        if length == 0 and kind == b"mdat":
            length = size - place  # to the end of the file
        # What is no box is padding that some recorder left.
        if length < 8 or not (kind.isascii() and kind.decode("ascii").isprintable()):
            return None
        kinds.add(kind)
        place += length
    return None


def _elements(file: BinaryIO, head: bytes) -> int | None:
    """Matroska: elements with a name and a size of 1 to 8 bytes; the segment holds the rest."""
    place = 0
    while place < len(head):
        name, place = _number(head, place, keep_marker=True)
        length, end = _number(head, place, keep_marker=False)
        if name == _SEGMENT:
            # All ones is "not known": a live recording.
            return None if length == (1 << 7 * (end - place)) - 1 else end + length
        place = end + length
    return None


def _number(content: bytes, place: int, *, keep_marker: bool) -> tuple[int, int]:
    """An EBML number, whose leading zero bits say how many bytes follow, and where it ends."""
    first = content[place] if place < len(content) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(content[place : place + width], "big")
    return value if keep_marker else value & ((1 << 7 * width) - 1), place + width


def _chunks(file: BinaryIO, head: bytes) -> int | None:
    """AVI: RIFF chunks of at most a gigabyte or two, one after the other."""
    size = file.seek(0, os.SEEK_END)
    place = end = 0
    for _ in range(_MAX_PARTS):
        if place + 8 > size:
            return end or None
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length in (0, 0xFFFFFFFF):
            return end or None
        end = place + 8 + length
        place = end + length % 2
    return None


def _properties(file: BinaryIO, head: bytes) -> int | None:
    """ASF: the file's size stands in its properties, unless it was broadcast."""
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 92 > len(head):
        return None
    broadcast = head[at + 88] & 1
    size = int.from_bytes(head[at + 40 : at + 48], "little")
    return None if broadcast else size or None


def _metadata(file: BinaryIO, head: bytes) -> int | None:
    """FLV: the file's size is one of the numbers of its first tag, where the writer knew it."""
    name = b"\x00\x08filesize\x00"
    at = head.find(name) + len(name)
    if at < len(name) or at + 8 > len(head):
        return None
    (size,) = struct.unpack_from(">d", head, at)
    return int(size) if 0 < size < _LARGEST_BYTES else None


_CONTAINERS: tuple[tuple[int, tuple[bytes, ...], Callable[[BinaryIO, bytes], int | None]], ...] = (
    (4, (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip"), _boxes),
    (0, (b"\x1a\x45\xdf\xa3",), _elements),
    (0, (b"RIFF",), _chunks),
    (0, (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",), _properties),
    (0, (b"FLV",), _metadata),
)
"""Where a container begins with one of which bytes, and how it says its size."""
