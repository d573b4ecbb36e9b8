"""The live table: a stream's newest frames on a terminal, or a few plain lines in a log.

Knows nothing of where frames come from nor of averages (see `stc.runtime.show.summary`).
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stc.runtime.report import STAGES, FrameReport
from stc.shell import command

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
            self._console = command.Console(
                file=console.file, force_terminal=False, color_system=None
            )

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
        line = (
            f"frame {index}  {time_s} s  {kind}  recomputed {recomputed}  kept {kept}  {total} ms"
        )
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
