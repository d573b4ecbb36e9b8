"""What `stc-parity` prints: a table of what was compared, one of latency, and the verdict."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from stc.runtime.parity.report import ParityReport
from stc.runtime.sides.choice import PYTORCH, Against
from stc.shell.command import Console

LOG_WIDTH = 200
"""Columns where there is no terminal: names stay whole, for grep."""


def parity_console() -> Console:
    """The console of stdout on which tables are not cut."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


def print_parity(
    console: Console,
    report: ParityReport,
    latency: dict[str, Any],
    *,
    backend: str,
    against: Against,
    shown: str,
    whole: str,
) -> None:
    """`console` shows `report` and `latency` of `backend`, compared with `against` on `shown`.

    `whole` says what was compared of the whole model.
    """
    console.say(f"frames: {shown}")
    console.print(_rows_table(report, f"{backend} against {against}, {report.precision}"))
    console.print(_latency_table(latency, against))
    console.say(f"whole model: {whole}")
    failed = sum(not row.passed for row in report.rows.values())
    verdict = "equal" if report.passed else f"NOT equal: {failed} of {len(report.rows)} rows fail"
    console.print(f"the bundle and {against} are {verdict}")


def _rows_table(report: ParityReport, title: str) -> Table:
    table = Table(title=title)
    for column in ("graph or mode", "tensor"):
        table.add_column(column, overflow="fold")
    for column in ("max abs", "relative L2", "min cosine", "limit", "verdict"):
        table.add_column(column, justify="right", overflow="fold")
    for row in report.rows.values():
        figures = (row.max_abs, row.relative_l2, row.min_cosine, row.limit)
        shown = ("" if value != value else f"{value:.3g}" for value in figures)
        verdict = "pass" if row.passed else "[bold red]FAIL"
        if row.limit != row.limit:
            verdict = "told"
        table.add_row(row.where, row.tensor, *shown, verdict)
    return table


def _latency_table(latency: dict[str, Any], against: Against) -> Table:
    table = Table(title="latency of the tower, ms")
    columns = {"bundle p50": "{}_ms_p50", "bundle p95": "{}_ms_p95"}
    if against == PYTORCH:
        columns["PyTorch p50"] = "torch_{}_ms_p50"
        columns["PyTorch p95"] = "torch_{}_ms_p95"
        columns["ratio"] = "speedup_{}"
    for column in ("frame", "n", *columns):
        table.add_column(column, justify="right", overflow="fold")
    for kind in ("reference", "reuse"):
        values = [latency[name.format(kind)] for name in columns.values()]
        figures = ("" if value is None else f"{value:.2f}" for value in values)
        table.add_row(kind, str(latency[f"{kind}_frames"]), *figures)
    return table
