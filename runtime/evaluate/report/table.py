"""The result on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from stc.runtime.evaluate.report.columns import ANSWERS, COST, FIDELITY, Column, Figures, percent
from stc.shell.command import Console


def print_summary(console: Console, document: Figures) -> None:
    """`console` shows the figures of `document`, as `summary` made them."""
    asked, scenes = document["questions"], document["scenes"]
    console.say(f"data: {document['data']}; scenes: {scenes}; questions: {asked}")
    if asked:
        console.print(_table("answers", document, ANSWERS))
        console.print(_families(document))
        base = document["baselines"]
        console.say(
            f"without looking: chance {percent(base['chance'])}, commonest answer of each kind "
            f"{percent(base['majority'])}, the model blind {percent(base['blind'])}"
        )
        console.say(f"right: {document['scoring']}")
    console.print(_table("cost and fidelity", document, (*COST, *FIDELITY)))


def _table(title: str, document: Figures, columns: Sequence[Column]) -> Table:
    table = Table(title=title)
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right", overflow="fold")
    for label, figures in document["methods"].items():
        table.add_row(label, *(column.written(figures) for column in columns))
    return table


def _families(document: Figures) -> Table:
    table = Table(title="accuracy by family")
    table.add_column("method", overflow="fold")
    first = next(iter(document["methods"].values()))
    for family, figures in first["families"].items():
        table.add_column(f"{family} ({figures['questions']})", justify="right", overflow="fold")
    for label, figures in document["methods"].items():
        shown = (percent(one["accuracy"]) for one in figures["families"].values())
        table.add_row(label, *shown)
    return table
