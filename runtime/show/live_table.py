"""What a terminal shows of a stream: its newest frames while it runs, then a summary.

In a log these are a few plain lines. Knows nothing of where frames come from.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stc.runtime.figures.metrics import DenseComparison, StreamSummary, Timing, sparkline
from stc.runtime.report import STAGES, FrameReport
from stc.shell.command import Console

ROWS = 12
"""Frames the table shows."""

_REDRAW_S = 0.25  # drawing costs the host milliseconds; nobody reads more than four tables a second
_HEADS = ("frame", "time s", "kind", "recomputed", "kept", "pre-\nprocess", *STAGES[1:], "total")


class LiveTable:
    """Shows frames of T = `tokens`, n = `pooled` tokens while a stream runs.

    On a terminal the table is redrawn in place and stays when the `with` block ends. Elsewhere
    frames 1, 2, 4, 8, ... are one line each, so that a log stays short however long the stream,
    the table is printed once, at the end, and no control character is written.

    `console` should be of stderr (the default), so that stdout stays clean for JSON. `expected`
    is the number of frames, where known. `clock` gives seconds.
    """

    def __init__(
        self,
        tokens: int,
        pooled: int,
        *,
        expected: int | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._of = (tokens, pooled)
        self._expected = expected
        self._clock = clock
        self._newest: deque[FrameReport] = deque(maxlen=ROWS)
        self._frames = 0
        self.count()
        self._drawn_s = -math.inf
        console = console or Console(stderr=True)
        self._closed = False
        self._live: Live | None = None
        if console.file.isatty() and not console.is_dumb_terminal:
            self._console = console
            # Taking stdout over would send what a pipe awaits to the console.
            stdout = sys.stdout.isatty()
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=stdout)
        else:
            # Rich takes FORCE_COLOR, which many a CI sets, for a terminal.
            self._console = Console(file=console.file, force_terminal=False, color_system=None)

    def __enter__(self) -> LiveTable:
        self._start_s = self._clock()
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        if self._live:
            self._stop()
        elif self._frames:
            self._console.print(self._picture())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What the body prints stands between the table so far and the table from then on.

        Frames added meanwhile show afterwards. The body may outlast the table, or follow it.
        """
        shown = self._stop()
        yield
        if self._live and shown and not self._closed:
            self._live.start()

    def _stop(self) -> bool:
        """The table stays as it is now and is not redrawn; whether it was until then."""
        if not self._live or not self._live.is_started:
            return False
        self._live.update(self._picture(), refresh=True)
        self._live.stop()
        return True

    def add(self, report: FrameReport) -> None:
        """`report` is the newest frame; it shows within a quarter of a second."""
        self._newest.append(report)
        self._frames += 1
        if self._live:
            now_s = self._clock()
            if self._live.is_started and now_s - self._drawn_s >= _REDRAW_S:
                self._live.update(self._picture(), refresh=True)
                self._drawn_s = now_s
        elif self._frames.bit_count() == 1:
            self._print_line(report)

    def count(
        self, *, dropped_frames: int = 0, broken_frames: int = 0, reconnects: int = 0
    ) -> None:
        """What befell the source so far shows from the next frame on."""
        self._troubles = f"{dropped_frames} dropped, {broken_frames} broken"
        if reconnects:
            self._troubles += f", {reconnects} reconnects"
        self._troubled = bool(dropped_frames or broken_frames or reconnects)

    def _cells(self, report: FrameReport) -> tuple[str, ...]:
        tokens, pooled = self._of
        stages = (f"{report.stage_ms[stage]:.1f}" for stage in STAGES)
        return (
            str(report.index),
            f"{report.time_s:.1f}",
            report.kind,
            f"{len(report.recomputed)}/{tokens}",
            f"{len(report.kept)}/{pooled}",
            *stages,
            f"{report.total_ms:.1f}",
        )

    def _picture(self) -> Group:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
        for head in _HEADS:
            table.add_column(head, justify="left" if head == "kind" else "right", vertical="bottom")
        for report in self._newest:
            style = "yellow" if report.kind == "reference" else None
            table.add_row(*self._cells(report), style=style)
        return Group(self._progress(), table)

    def _progress(self) -> Table:
        elapsed_s = self._clock() - self._start_s
        of = f"/{self._expected}" if self._expected else ""
        facts = [f"{self._frames}{of} frames", f"{elapsed_s:.1f} s"]
        if elapsed_s > 0:
            facts.append(f"{self._frames / elapsed_s:.1f} frames/s")
        troubles = Text(self._troubles, style="red" if self._troubled else "dim")
        line = Table.grid(padding=(0, 2))
        if self._live and self._expected:
            bar = ProgressBar(total=self._expected, completed=self._frames, width=16)
            line.add_row(bar, *facts, troubles)
        else:
            line.add_row(*facts, troubles)
        return line

    def _print_line(self, report: FrameReport) -> None:
        index, time_s, kind, recomputed, kept, *_, total = self._cells(report)
        tokens = f"recomputed {recomputed}  kept {kept}"
        self._console.say(f"frame {index}  {time_s} s  {kind}  {tokens}  {total} ms")


def print_summary(
    console: Console, summary: StreamSummary, comparison: DenseComparison | None = None
) -> None:
    """`console` shows times by stage and kind of frame, token counts and, if any, `comparison`."""
    if summary.frames:
        console.print(_kinds_table(summary), end="\n\n")
    if comparison is not None:
        console.print(_comparison_table(comparison), end="\n\n")
    for line in _lines(summary, unicode=console.encoding.startswith("utf")):
        console.say(line)


def _kinds_table(summary: StreamSummary) -> Table:
    table = _table("ms per frame, p50 / p95")
    for kind, of_kind in summary.kinds().items():
        style = "yellow" if kind == "reference" else None
        table.add_column(f"{kind}\n{of_kind.frames} frames", justify="right", style=style)
    kinds = tuple(summary.kinds().values())
    for stage in STAGES:
        table.add_row(stage, *(_times(kind.stages[stage]) for kind in kinds))
    table.add_row("total", *(_times(kind.total) for kind in kinds), style="bold", end_section=True)
    recomputed = (f"{kind.tokens_recomputed:g} of {summary.tokens}" for kind in kinds)
    table.add_row("tokens recomputed", *recomputed)
    table.add_row("tokens kept", *(f"{kind.tokens_kept:g} of {summary.pooled}" for kind in kinds))
    return table


def _comparison_table(comparison: DenseComparison) -> Table:
    table = _table("per frame, against dense")
    for head in (f"dense\n({comparison.basis})", "here", "saving"):
        table.add_column(head, justify="right")
    for name, dense, here, saving in (
        ("vision ms", comparison.dense_vision_ms, comparison.vision_ms, comparison.vision_saving),
        ("total ms", comparison.dense_push_ms, comparison.push_ms, comparison.push_saving),
        (
            "tokens to prefill",
            comparison.dense_prefill_tokens,
            comparison.prefill_tokens,
            comparison.prefill_tokens_saving,
        ),
    ):
        table.add_row(name, f"{dense:.1f}", f"{here:.1f}", f"{saving:.1%}")
    if comparison.vision_work is not None:
        work = comparison.vision_work
        table.add_row("vision work", "100.0%", f"{work:.1%}", f"{1 - work:.1%}")
    return table


def _lines(summary: StreamSummary, *, unicode: bool) -> list[str]:
    speed = f"{summary.frames} frames, {summary.frames_per_second:.1f} per second computing"
    if summary.wall_s:
        speed += f", {summary.frames / summary.wall_s:.1f} per second elapsed"
    source = (
        f"source: {summary.dropped_frames} dropped, {summary.broken_frames} broken, "
        f"{summary.reconnects} reconnects"
    )
    if summary.oldest_frame_ms:
        source += f", frames at most {summary.oldest_frame_ms:.0f} ms old"
    lines = [f"{speed}; host overhead {summary.host_overhead_fraction:.1%}", source]
    if unicode and summary.trend_ms:
        lines.append(f"ms over time  {sparkline(summary.trend_ms)}  {max(summary.trend_ms):.1f}")
    return lines


def _table(first_head: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first_head, vertical="bottom")
    return table


def _times(timing: Timing) -> str:
    return f"{timing.p50_ms:.1f} / {timing.p95_ms:.1f}"
