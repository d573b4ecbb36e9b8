"""Files of questions and answers: found, read, and every field of them checked.

Whatever is wrong is one line with the file, the entry, what it holds and what it should.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stc.errors import SettingsError, first_line
from stc.shell.ranges import real, shown, whole

AGAIN = "correct it, or download the official file again"
NAME_IT = "name the file itself with --data FILE"
DEPTH = ("", "*/", "*/*/")
"""Folders that files are looked for in, below the one that is named."""


class Entry:
    """An object of a file, which knows where it stands.

    Every method raises SettingsError that names the field unless it holds what is asked for.
    """

    def __init__(self, values: Any, place: str) -> None:
        if not isinstance(values, dict):
            raise SettingsError(place, f"got {shown(values)}", "an object with fields")
        self.values: dict[str, Any] = values
        self.place = place

    def where(self, name: str) -> str:
        """The place of the field `name`, as an error calls it."""
        return f"{self.place}.{name}"

    def value(self, name: str, expected: str) -> Any:
        """The field, whatever it is."""
        if name not in self.values:
            raise SettingsError(self.where(name), "no such field", expected)
        return self.values[name]

    def text(self, name: str) -> str:
        """The field as a text that is not blank, without blanks around it."""
        value = self.value(name, "text")
        if not isinstance(value, str) or not value.strip():
            raise SettingsError(self.where(name), f"got {shown(value)}", "text")
        return value.strip()

    def named(self, *names: str) -> str:
        """The first of `names` that is a field; the first of all where none is one."""
        return next((name for name in names if name in self.values), names[0])

    def whole(self, name: str, least: int, most: int) -> int:
        """The field as a whole number of a range."""
        value = self.value(name, "a whole number")
        return whole(self.where(name), value, least=least, most=most)

    def seconds(self, name: str) -> float:
        """The field as a time in seconds."""
        expected = "seconds, at least 0"
        return real(self.where(name), self.value(name, expected), expected, least=0)

    def clock(self, name: str) -> int:
        """The field, a time as HH:MM:SS or MM:SS, in seconds."""
        text = self.text(name)
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(p.isascii() and p.isdigit() for p in parts):
            raise SettingsError(self.where(name), f"got {shown(text)}", "a time HH:MM:SS")
        total = 0
        for part in parts:
            total = total * 60 + int(part[:9])
        return total

    def listed(self, name: str) -> list[Any]:
        """The field as a list that is not empty."""
        value = self.value(name, "a list")
        if not isinstance(value, list) or not value:
            raise SettingsError(self.where(name), f"got {shown(value)}", "a list, not empty")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """The field as a list of 2 to `most` texts."""
        values = self.listed(name)
        if not 2 <= len(values) <= most or not all(isinstance(one, str) for one in values):
            got = f"got {shown(values)}"
            raise SettingsError(self.where(name), got, f"a list of 2 to {most} texts")
        return values

    def entries(self, name: str) -> list[Entry]:
        """The field as a list of objects."""
        return [
            Entry(value, f"{self.where(name)}[{index}]")
            for index, value in enumerate(self.listed(name))
        ]


def find_one(folder: Path, names: Sequence[str]) -> Path:
    """The file of `folder`, or of the folders in it, that has one of `names`, which may be
    patterns; `folder` itself where that is a file.

    Raises SettingsError unless there is exactly one.
    """
    found = find_all(folder, names)
    if len(found) > 1:
        got = f"holds {len(found)} files of questions ({', '.join(map(str, found[:4]))})"
        raise SettingsError(folder, got, "one", NAME_IT)
    if not found:
        raise SettingsError(folder, "holds no file of questions", " or ".join(names), NAME_IT)
    return found[0]


def find_all(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files that `find_one` looks for, however many, in the order of their names."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise SettingsError(folder, "no such folder", "the benchmark's files", "check --data")
    found = {
        path
        for depth in DEPTH
        for name in names
        for path in folder.glob(depth + name)
        if path.is_file()
    }
    return sorted(found)


def roots_of(folder: Path, path: Path) -> tuple[Path, ...]:
    """Where the videos of the questions in `path`, found in `folder`, may lie: beside them, or from
    there."""
    return (path.parent,) if folder.is_file() else (path.parent, folder)


def first_of(roots: Sequence[Path], names: Sequence[str]) -> Path:
    """The first of `names` that is a file below one of `roots`; the first of all where none is."""
    paths = [root / name for name in names for root in roots]
    return next((path for path in paths if is_there(path)), paths[0])


def is_there(path: Path) -> bool:
    """Whether `path` is a file; a name that no file can have is none."""
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False


def read_text(path: Path, fix: str = AGAIN, flag: str = "") -> str:
    """What `path` holds, which `flag` named. Raises SettingsError unless that is text in UTF-8."""
    subject = f"{flag} {path}" if flag else str(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        got = f"cannot be read ({error.strerror or error})"
        raise SettingsError(subject, got, fix="check the path") from error
    except ValueError as error:
        got = f"no text in UTF-8 ({first_line(error)})"
        raise SettingsError(subject, got, fix=fix) from error


def parse_json(text: str, place: str, fix: str = AGAIN) -> Any:
    """The value that `text` of `place` is. Raises SettingsError unless it is JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SettingsError(place, f"no JSON ({first_line(error)})", fix=fix) from error


def read_json(path: Path, fix: str = AGAIN, flag: str = "") -> list[Any]:
    """The list that the file `path` holds, in JSON. Raises SettingsError unless it does."""
    value = parse_json(read_text(path, fix, flag), str(path), fix)
    if not isinstance(value, list) or not value:
        raise SettingsError(path, f"got {shown(value)}", "a list of entries, not empty", fix)
    return value


def json_entries(path: Path, fix: str = AGAIN, flag: str = "") -> list[Entry]:
    """The objects that the file `path` lists. Raises SettingsError unless it does."""
    values = read_json(path, fix, flag)
    return [Entry(value, f"{path}[{index}]") for index, value in enumerate(values)]


def json_lines(path: Path, fix: str, flag: str) -> Iterator[tuple[int, Entry]]:
    """The objects of the file `path`, one a line, with the numbers of their lines."""
    # Not splitlines(), which ends a line at characters that a text in JSON may hold.
    for number, line in enumerate(read_text(path, fix, flag).split("\n"), start=1):
        if line.strip():
            place = f"{path} line {number}"
            yield number, Entry(parse_json(line, place, fix), place)


def csv_entries(path: Path) -> list[Entry]:
    """The rows of the file `path`, by the names in its first line.

    Raises SettingsError for a row of more or fewer columns, or where there is none.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    entries = []
    try:
        for row in reader:
            place = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise SettingsError(place, "more or fewer columns than the first line", fix=AGAIN)
            entries.append(Entry(row, place))
    except csv.Error as error:
        place = f"{path} line {reader.line_num}"
        raise SettingsError(place, f"no CSV ({first_line(error)})", fix=AGAIN) from error
    if not entries:
        raise SettingsError(path, "no rows", "a row for each question", AGAIN)
    return entries
