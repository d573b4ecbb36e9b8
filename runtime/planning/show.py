"""The plan on a terminal: what each stage costs, and what every board would make of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich import box
from rich.table import Table

from stc.runtime.planning.estimate import FRAME_RATES, Figures
from stc.runtime.planning.stages import PREFILL, PREFILL_ALL, REFERENCE, TOKEN, reuse_stage
from stc.shell.command import Console

STAGES = {
    REFERENCE: "reference frame",
    reuse_stage("layerwise"): "reuse, layerwise",
    reuse_stage("shared"): "reuse, shared",
    PREFILL: "prefill, kept",
    PREFILL_ALL: "prefill, all",
    TOKEN: "decoded token",
}
"""Stages, as a person reads them, in order."""
_SHORT = {
    REFERENCE: "refe-\nrence",
    reuse_stage("layerwise"): "reuse\nlayer.",
    reuse_stage("shared"): "reuse\nshared",
    PREFILL: "pre-\nfill",
    TOKEN: "\ntoken",
}
"""The same above a narrow column."""
_COST = ("\nkernels", "MB\nmoved", "MB of\nweights", "MB of\nscratch", "\nfused")
ESTIMATE = "estimated from the layer list by a roofline, not measured"


def print_plan(console: Console, document: Figures) -> None:
    """`console` shows the figures of `document`, as stc-plan writes them."""
    for told, names in _by_list(document["targets"]).items():
        first = document["targets"][names[0]]
        console.print(_engines(first, f"{', '.join(names)}: layers {told}"))
        console.print()
        console.print(_stages(first))
        console.print()
    console.print(_boards(document))
    console.print()
    settings, factors = document["settings"], document["factors"]
    interval, selection = settings["reference_interval"], settings["selection"]
    console.say(
        f"times in ms {ESTIMATE}: {factors['compute_efficiency']:.3g} of the peak, "
        f"{factors['bandwidth_efficiency']:.3g} of the bandwidth, {factors['kernel_us']:g} us a "
        f"kernel, {factors['host_call_us']:g} us a call of the host"
    )
    told = "every frame a reference" if interval == 1 else f"interval {interval}, {selection}"
    console.say(f"frames/s and streams: {told}, {document['kept']} tokens kept of each frame")
    for one in document["calibration"]:
        console.say(calibration_line(one))


def calibration_line(one: Figures) -> str:
    """What a calibration found, for a person."""
    stages = ", ".join(
        f"{stage} {figures['measured_ms']:.3g} ms measured, {figures['fitted_ms']:.3g} fitted "
        f"({figures['error']:+.0%})"
        for stage, figures in one["stages"].items()
    )
    table = "of no board of the table, by name, memory and power mode, not used above"
    used = "used above" if one["used"] else table
    return (
        f"calibrated by {one['file']} on {one['machine']}: "
        f"--compute-efficiency {one['compute_efficiency']:.3g} "
        f"--bandwidth-efficiency {one['bandwidth_efficiency']:.3g} of a {one['board']} ({used}); "
        f"mean error {one['error']:.0%}: {stages}"
    )


def _by_list(targets: Figures) -> dict[str, list[str]]:
    """Targets by what their layers were listed by."""
    found: dict[str, list[str]] = {}
    for name, one in targets.items():
        told = f"of {one['compiled']} by {one['compiler']}"
        found.setdefault(told, []).append(name)
    return found


def _engines(target: Figures, title: str) -> Table:
    rows = [
        (f"{name} x {one['graphs']}" if one["graphs"] > 1 else name, *_cost(one))
        for name, one in target["engines"].items()
    ]
    return _table(title, ("\nengine, one run", *_COST), rows)


def _stages(target: Figures) -> Table:
    heads = ("\nstage", *_COST, "host: enqueues/copies/\nsyncs/mallocs/frees")
    rows = []
    for stage, told in STAGES.items():
        if (one := target.get(stage)) is None:
            continue
        host = ("enqueues", "copies", "synchronisations", "allocations", "frees")
        rows.append((told, *_cost(one), "/".join(str(one[name]) for name in host)))
    return _table(None, heads, rows)


def _cost(one: Figures) -> tuple[str, ...]:
    """The columns of _COST."""
    return (
        str(one["kernels"]),
        _mb(one["bytes"]),
        _mb(one["weight_bytes"]),
        "?" if one["scratch_bytes"] is None else _mb(one["scratch_bytes"]),
        f"{one['attentions_fused']}/{one['attentions']}" if one["attentions"] else "-",
    )


def _boards(document: Figures) -> Table:
    present = next(iter(document["targets"].values()))
    stages = [stage for stage in _SHORT if stage in present]
    rates = "/".join(map(str, FRAME_RATES))
    heads = (
        "\nboard",
        *(_SHORT[stage] for stage in stages),
        "frames\n/s",
        f"streams at\n{rates} fps",
    )
    rows = []
    for target in document["targets"].values():
        for name, board in target["boards"].items():
            times = (three_figures(board["estimated_ms"][stage]) for stage in stages)
            streams = "/".join(str(board["streams"][str(rate)]) for rate in FRAME_RATES)
            small = board["needed_bytes"] > board["memory_gib"] << 30
            fit = "too small" if small else streams
            rows.append((name, *times, three_figures(board["fps"]), fit))
    return _table("boards, ms (estimates)", heads, rows)


def three_figures(value: float) -> str:
    """`value` in three figures, and no fewer than its whole part has."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str | None, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for number, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(head, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e9 else f"{size / 1e6:,.0f}"
