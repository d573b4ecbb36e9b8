"""`stc-parity`: does a bundle equal PyTorch? Graph by graph and end to end, on real frames."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from stc import command, contracts, settings
from stc.bundle import Bundle
from stc.command import Console
from stc.errors import SettingsError, VideoError
from stc.runtime import open as opening
from stc.runtime.bench import Bench
from stc.runtime.document_output import document_output
from stc.runtime.frame import Frame
from stc.runtime.machine import machine_facts
from stc.runtime.open_language import open_model
from stc.runtime.output_paths import refuse_shared_paths
from stc.runtime.parity import ParityReport
from stc.runtime.parity_graphs import compare_graphs
from stc.runtime.parity_language import compare_language
from stc.runtime.parity_streams import compare_streams
from stc.runtime.preprocess import Preprocessor
from stc.runtime.torch_side import torch_language_side, torch_side
from stc.runtime.tower import VisionTower
from stc.settings import Settings

MODES = 3
"""dense, layerwise, shared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 equal, 1 not equal."""
    return command.run(lambda: _parity(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-parity", description=__doc__)
    opening.add_flags(parser)
    parser.add_argument("--checkpoint", metavar="DIR_OR_ID", help="the checkpoint exported")
    parser.add_argument("--video", metavar="FILE", help="default: seeded noise")
    parser.add_argument("--frames", type=int, default=4, metavar="N", help="frames compared")
    parser.add_argument("--json", metavar="OUT", help="file, or - for the last line of stdout")
    settings.add_flags(parser)
    return parser.parse_args(arguments)


def _parity(flags: argparse.Namespace) -> int:
    if flags.frames < 2:
        raise SettingsError("--frames", f"got {flags.frames}", "at least 2")
    refuse_shared_paths(
        {"--json": flags.json}, video=flags.video, bundle=flags.bundle, checkpoint=flags.checkpoint
    )
    with document_output(flags.json) as write:
        document = _compared(flags)
        write(document)
    return 0 if document["passed"] else 1


def _compared(flags: argparse.Namespace) -> dict[str, Any]:
    bundle = Bundle.open(flags.bundle)
    manifest = bundle.manifest
    chosen = settings.from_flags(flags, manifest.default_settings, manifest.vision.pooled)
    # Two frames in a row are one of each kind.
    chosen = replace(chosen, reference_interval=max(2, chosen.reference_interval))
    frames = opening.frames(flags.video, flags.frames)
    if len(frames) < 2:
        raise VideoError(flags.video, f"{len(frames)} frame", "at least 2 to compare")
    tower = opening.open_tower(bundle, flags.device, flags.backend)
    preprocess = Preprocessor(manifest.vision)
    pixels = [preprocess(frame.rgb).copy() for frame in frames]
    report = ParityReport(manifest.provenance.precision)
    bench = Bench(opening.open_session(tower, chosen))
    steps = len(contracts.vision_graphs(manifest.vision.blocks)) + (MODES + 1) * len(frames)
    console = Console(stderr=True)
    with (
        torch_side(bundle, flags.checkpoint) as torch,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("comparing", total=steps)

        def tick() -> None:
            progress.advance(task)

        compare_graphs(tower, torch.run_graph, (pixels[0], pixels[1]), chosen, report, tick)
        compare_streams(tower, torch.stream, pixels, chosen, report, tick)
        for frame in frames:
            bench.measure(frame, torch.stream)
            tick()
    if manifest.language is not None:
        _compare_language(bundle, tower, flags, frames, chosen, report, console)
    latency = bench.figures()
    _show(Console(), report, latency, tower)
    return {
        "bundle": manifest.provenance.checkpoint,
        **report.to_json(),
        "latency": latency,
        "machine": machine_facts(),
    }


def _compare_language(
    bundle: Bundle,
    tower: VisionTower,
    flags: argparse.Namespace,
    frames: list[Frame],
    chosen: Settings,
    report: ParityReport,
    console: Console,
) -> None:
    """`report` has rows for the language side, behind the kept tokens of `frames`."""
    session = opening.open_session(tower, chosen)
    video = np.concatenate([session.push(frame).tokens for frame in frames])
    model = open_model(bundle, opening.language_backend(bundle, tower, flags.device))
    with (
        torch_language_side(bundle, flags.checkpoint) as torch,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("comparing language", total=2 * model.spec.blocks + 3)
        compare_language(
            model, torch.run_graph, torch.decoder, video, report, lambda: progress.advance(task)
        )


def _show(
    console: Console, report: ParityReport, latency: dict[str, Any], tower: VisionTower
) -> None:
    table = Table(title=f"{tower.backend.name} against PyTorch, {report.precision}")
    for column in ("graph or mode", "tensor"):
        table.add_column(column)
    for column in ("max abs", "relative L2", "min cosine", "limit", "verdict"):
        table.add_column(column, justify="right")
    for row in report.rows.values():
        figures = (row.max_abs, row.relative_l2, row.min_cosine, row.limit)
        shown = ("" if value != value else f"{value:.3g}" for value in figures)
        table.add_row(row.where, row.tensor, *shown, "pass" if row.passed else "[bold red]FAIL")
    console.print(table)
    times = Table(title="latency of the tower, ms")
    for column in ("frame", "bundle p50", "bundle p95", "PyTorch p50", "PyTorch p95", "ratio"):
        times.add_column(column, justify="right")
    for kind in ("reference", "reuse"):
        names = (f"{kind}_ms_p50", f"{kind}_ms_p95", f"torch_{kind}_ms_p50", f"torch_{kind}_ms_p95")
        values = (*(latency[name] for name in names), latency[f"speedup_{kind}"])
        times.add_row(kind, *("" if value is None else f"{value:.2f}" for value in values))
    console.print(times)
    failed = sum(not row.passed for row in report.rows.values())
    verdict = "equal" if report.passed else f"NOT equal: {failed} of {len(report.rows)} rows fail"
    console.print(f"the bundle and PyTorch are {verdict}")


if __name__ == "__main__":
    sys.exit(main())
