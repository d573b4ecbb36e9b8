"""What several runs of `stc-run --compare-dense` cost and answered: one document, one table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from stc.errors import SettingsError
from stc.runtime.evaluate.benchmarks.entries import parse_json, read_text
from stc.runtime.output import Document, document_output
from stc.shell import command
from stc.shell.command import Console

HEADS = ("tower work", "tower ms", "tokens", "prefill ms", "answers right")
_FIX = "write it with stc-run BUNDLE --video VIDEO --questions FILE --compare-dense --json OUT"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _join(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="python -m stc.runtime.commands.runs", description=__doc__)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN.json", help="documents of stc-run")
    joined = "the last document, the others as other_runs, the questions of all as questions"
    add("--json", metavar="OUT", help=f"file, or - for the last line of stdout: {joined}")
    return parser.parse_args(arguments)


def _join(flags: argparse.Namespace) -> int:
    documents = [_document(path) for path in flags.runs]
    console = Console()
    with document_output(flags.json) as write:
        for one in documents:
            console.print(_table(one), end="\n\n")
        write(joined(documents))
    return 0


def joined(documents: Sequence[Document]) -> Document:
    """The last of `documents`, with the others and the questions of all; see `--json`."""
    *others, last = documents
    questions = [
        {"clip": one["video"], **question, "settings": one["settings"]}
        for one in documents
        for question in one["language"]["questions"]
    ]
    return {**last, "questions": questions, "other_runs": others}


def _document(path: Path) -> Document:
    """Raises SettingsError for what is no document of a run beside dense with questions."""
    found: Any = parse_json(read_text(path, _FIX), str(path), _FIX)
    try:
        _ = [*_rows(found), found["video"], found["settings"], found["language"]["questions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(path, "no run beside dense with questions", fix=_FIX) from error
    document: Document = found
    return document


def _table(document: Document) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    heads = (Path(document["video"]).name, *HEADS)
    for head in heads:
        justify: Literal["left", "right"] = "left" if head == heads[0] else "right"
        table.add_column(head, justify=justify, no_wrap=True)
    for row in _rows(document):
        table.add_row(*row)
    return table


def _rows(document: Document) -> Iterator[tuple[str, ...]]:
    cost, language = document["against_dense"], document["language"]
    scores, dense = language["scores"], language["dense"]
    unasked = language["questions_unasked"]
    left = f", {unasked} not asked" * bool(unasked)
    for name, work, ms, tokens, prefill_ms, right in (
        (
            "dense",
            1.0,
            cost["dense_vision_ms"],
            cost["dense_prefill_tokens"],
            dense["prefill_ms_per_frame"],
            scores["dense_right"],
        ),
        (
            "compressed",
            cost["vision_work"],
            cost["vision_ms"],
            cost["prefill_tokens"],
            language["prefill_ms_per_frame"],
            scores["right"],
        ),
    ):
        answers = f"{right} of {scores['expected']}{left}"
        yield name, f"{work:.0%}", f"{ms:.1f}", f"{tokens:g}", f"{prefill_ms:.1f}", answers


if __name__ == "__main__":
    sys.exit(main())
