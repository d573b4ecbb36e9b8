"""Parity: what is compared, how far apart it may be, and the verdict, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from stc.manifest import Precision
from stc.method.difference import Difference, difference, whole_limit
from stc.runtime.parity.sides import PYTORCH, Against
from stc.shell.command import Console

LOG_WIDTH = 200
"""Columns where there is no terminal: names stay whole, for grep."""


@dataclass(frozen=True)
class Tolerance:
    """Limits for one graph on equal inputs (`graph_*`) and for the whole chain (`chain_*`).

    `score_gap`: largest distance, in units of the score, by which a selection may miss the
    lowest scores as PyTorch computes them; below it the scores are equal up to rounding.
    """

    graph_relative_l2: float
    chain_relative_l2: float
    min_cosine: float
    score_gap: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-4, 1e-3, 0.9999, 1e-4),
    "fp16": Tolerance(2e-2, 5e-2, 0.99, 1e-2),
}
"""The cosine limits are those users of such tools gate on (0.99 in fp16)."""


@dataclass(frozen=True)
class Row:
    """One compared tensor: `where` is a graph or a mode of the whole chain."""

    where: str
    tensor: str
    max_abs: float
    relative_l2: float
    min_cosine: float
    limit: float
    passed: bool


@dataclass
class ParityReport:
    """Rows in the order they were compared; the worst figure stands for repeated comparisons.

    tick: called after each of the steps that whoever compares counts.
    """

    precision: Precision
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    tick: Callable[[], None] = lambda: None

    @property
    def passed(self) -> bool:
        """Whether every row passed, and there is one."""
        return bool(self.rows) and all(row.passed for row in self.rows.values())

    def graph(self, graph: str, tensor: str, expected: NDArray[Any], got: NDArray[Any]) -> None:
        """Compare a graph's output on equal inputs."""
        self._tensor(graph, tensor, expected, got, self._tolerance.graph_relative_l2)

    def chain(self, mode: str, tensor: str, expected: NDArray[Any], got: NDArray[Any]) -> None:
        """Compare a tensor at the end of the whole chain."""
        self._tensor(mode, tensor, expected, got, self._tolerance.chain_relative_l2)

    def whole(
        self,
        where: str,
        tensor: str,
        expected: NDArray[Any],
        got: NDArray[Any],
        moves: Callable[[float], float],
    ) -> None:
        """Compare a tensor of the whole model (`stc.method.difference.whole_limit`)."""
        limit = whole_limit(self.precision, expected, got, moves)
        self._tensor(where, tensor, expected, got, limit)

    def selection(self, where: str, tensor: str, gap: float) -> None:
        """Judge a choice of tokens by its gap (`stc.method.difference.selection_gap`)."""
        self.figure(where, tensor, gap, self._tolerance.score_gap)

    def figure(self, where: str, tensor: str, value: float, limit: float) -> None:
        """Judge any one figure by its own limit."""
        self._add(Row(where, tensor, value, math.nan, math.nan, limit, value <= limit))

    def told(self, where: str, tensor: str, value: float) -> None:
        """Tell a figure that has no limit and is not judged."""
        self._add(Row(where, tensor, value, math.nan, math.nan, math.nan, True))

    def to_json(self) -> dict[str, Any]:
        """The same, of dicts, lists, strings and numbers; None where a figure has no meaning."""
        rows = [
            {name: None if _not_finite(value) else value for name, value in asdict(row).items()}
            for row in self.rows.values()
        ]
        return {"passed": self.passed, "precision": self.precision, "rows": rows}

    @property
    def _tolerance(self) -> Tolerance:
        return TOLERANCES[self.precision]

    def _tensor(
        self, where: str, tensor: str, expected: NDArray[Any], got: NDArray[Any], limit: float
    ) -> None:
        if expected.shape != got.shape:
            self._add(Row(where, f"{tensor} {got.shape}", math.inf, math.inf, 0.0, limit, False))
            return
        found: Difference = difference(expected, got)
        # A row of scores is one direction, however its entries scatter.
        aligned = expected.ndim == 1 or found.min_cosine >= self._tolerance.min_cosine
        close = found.relative_l2 <= limit and aligned
        self._add(
            Row(where, tensor, found.max_abs, found.relative_l2, found.min_cosine, limit, close)
        )

    def _add(self, row: Row) -> None:
        known = self.rows.get((row.where, row.tensor))
        if known is None or _badness(row) > _badness(known):
            self.rows[row.where, row.tensor] = row


def _not_finite(value: object) -> bool:
    """Whether `value` is a number that JSON has no word for."""
    return isinstance(value, float) and not math.isfinite(value)


def _badness(row: Row) -> tuple[bool, float]:
    """Failed rows are worse than passed ones; NaN is worst."""
    figure = row.max_abs if np.isnan(row.relative_l2) else row.relative_l2
    return not row.passed, math.inf if math.isnan(figure) else figure


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
