"""The summary of a stream on a terminal or in a log."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from stc.runtime.figures.metrics import StreamSummary, Timing
from stc.runtime.figures.savings import DenseComparison
from stc.runtime.figures.trend import sparkline
from stc.runtime.report import STAGES


def print_summary(
    console: Console, summary: StreamSummary, comparison: DenseComparison | None = None
) -> None:
    """`console` shows times by stage and kind of frame, token counts and, if any, `comparison`."""
    if summary.frames:
        console.print(_kinds_table(summary), end="\n\n")
    if comparison is not None:
        console.print(_comparison_table(comparison), end="\n\n")
    for line in _lines(summary, unicode=console.encoding.startswith("utf")):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    lines = [
        f"{speed}; host overhead {summary.host_overhead_fraction:.1%}",
        source,
    ]
    if unicode and summary.trend_ms:
        lines.append(f"ms over time  {sparkline(summary.trend_ms)}  {max(summary.trend_ms):.1f}")
    return lines


def _table(first_head: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(first_head, vertical="bottom")
    return table


def _times(timing: Timing) -> str:
    return f"{timing.p50_ms:.1f} / {timing.p95_ms:.1f}"
