"""`stc-parity`: does a bundle equal PyTorch? Graph by graph and end to end, on real frames.

On TensorRT captured frames are compared as well; and without PyTorch, as on a device, the engines
are held against ONNX Runtime on the same graphs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

import numpy as np
from rich.progress import Progress
from rich.table import Table

from stc import command, contracts, settings
from stc.bundle import Bundle
from stc.command import Console
from stc.engines.tensorrt_backend import TensorRtBackend
from stc.errors import EngineError, SettingsError, VideoError
from stc.runtime import open as opening
from stc.runtime.bench import Bench
from stc.runtime.document_output import document_output
from stc.runtime.frame import Frame
from stc.runtime.machine import machine_facts
from stc.runtime.onnx_side import OnnxSide, onnx_side
from stc.runtime.open_language import open_model
from stc.runtime.output_paths import refuse_shared_paths
from stc.runtime.parity import ParityReport
from stc.runtime.parity_captured import captured_frames, compare_captured
from stc.runtime.parity_graphs import compare_graphs
from stc.runtime.parity_language import compare_language, language_steps
from stc.runtime.parity_streams import compare_streams
from stc.runtime.preprocess import Preprocessor
from stc.runtime.report import FrameKind
from stc.runtime.torch_side import (
    TorchSide,
    torch_is_installed,
    torch_language_side,
    torch_side,
)
from stc.runtime.tower import VisionTower
from stc.settings import SELECTIONS, Settings

MODES = 3
"""dense, layerwise, shared."""
PYTORCH, ONNX_RUNTIME = "PyTorch", "ONNX Runtime"


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
    opening.add_int4_flag(parser)
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
    on_device = isinstance(tower.backend, TensorRtBackend)
    if flags.int4 and on_device:
        raise SettingsError("--int4", "given", "--backend onnxruntime beside it")
    if flags.int4 and not manifest.int4_graphs:
        raise EngineError("--int4", f"{bundle.root} was exported without --int4 32 or 128")
    against = _against(flags, on_device)
    bench = Bench(opening.open_session(tower, chosen))
    steps = len(contracts.vision_graphs(manifest.vision.blocks)) + (MODES + 1) * len(frames)
    replayed: set[FrameKind] = set()
    console = Console(stderr=True)
    with (
        _side(bundle, flags.checkpoint, against) as other,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("comparing", total=steps)

        def tick() -> None:
            progress.advance(task)

        compare_graphs(tower, other.run_graph, (pixels[0], pixels[1]), chosen, report, tick)
        compare_streams(tower, other.stream, pixels, chosen, report, tick)
        if on_device:
            progress.update(task, total=steps + len(SELECTIONS) * captured_frames(chosen))
            replayed = compare_captured(tower, frames, chosen, report, tick)
            bench.warm_up(islice(cycle(frames), captured_frames(chosen)))
        for frame in frames:
            bench.measure(frame, other.stream if isinstance(other, TorchSide) else None)
            tick()
    if manifest.language is not None and not on_device:
        _compare_language(bundle, tower, flags, frames, chosen, report, console)
    latency = bench.figures()
    _show(Console(), report, latency, tower, against)
    if manifest.language is not None and on_device:
        console.print("the language side was not compared here: stc-build compares its engines")
    return {
        "bundle": manifest.provenance.checkpoint,
        "against": against,
        "captured": sorted(replayed),
        **report.to_json(),
        "latency": latency,
        "machine": machine_facts(),
    }


def _against(flags: argparse.Namespace, on_device: bool) -> str:
    """What the bundle is compared with: PyTorch, unless a device has none."""
    if on_device and flags.checkpoint is None and not torch_is_installed():
        return ONNX_RUNTIME
    return PYTORCH


@contextmanager
def _side(bundle: Bundle, checkpoint: str | None, against: str) -> Iterator[TorchSide | OnnxSide]:
    if against == ONNX_RUNTIME:
        yield onnx_side(bundle)
        return
    with torch_side(bundle, checkpoint) as side:
        yield side


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
    four_bits = None
    if flags.int4:
        four_bits = open_model(bundle, opening.open_backend(bundle, flags.device, int4=True))
    with (
        torch_language_side(bundle, flags.checkpoint) as torch,
        Progress(console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("comparing language", total=language_steps(model.spec.blocks))

        def tick() -> None:
            progress.advance(task)

        compare_language(
            model, torch.run_graph, torch.decoder, video, report, tick, four_bits=four_bits
        )


def _show(
    console: Console,
    report: ParityReport,
    latency: dict[str, Any],
    tower: VisionTower,
    against: str,
) -> None:
    table = Table(title=f"{tower.backend.name} against {against}, {report.precision}")
    for column in ("graph or mode", "tensor"):
        table.add_column(column)
    for column in ("max abs", "relative L2", "min cosine", "limit", "verdict"):
        table.add_column(column, justify="right")
    for row in report.rows.values():
        figures = (row.max_abs, row.relative_l2, row.min_cosine, row.limit)
        shown = ("" if value != value else f"{value:.3g}" for value in figures)
        verdict = "pass" if row.passed else "[bold red]FAIL"
        if row.limit != row.limit:
            verdict = "told"
        table.add_row(row.where, row.tensor, *shown, verdict)
    console.print(table)
    times = Table(title="latency of the tower, ms")
    columns = {"bundle p50": "{}_ms_p50", "bundle p95": "{}_ms_p95"}
    if against == PYTORCH:
        columns["PyTorch p50"] = "torch_{}_ms_p50"
        columns["PyTorch p95"] = "torch_{}_ms_p95"
        columns["ratio"] = "speedup_{}"
    for column in ("frame", *columns):
        times.add_column(column, justify="right")
    for kind in ("reference", "reuse"):
        values = [latency[name.format(kind)] for name in columns.values()]
        times.add_row(kind, *("" if value is None else f"{value:.2f}" for value in values))
    console.print(times)
    failed = sum(not row.passed for row in report.rows.values())
    verdict = "equal" if report.passed else f"NOT equal: {failed} of {len(report.rows)} rows fail"
    console.print(f"the bundle and {against} are {verdict}")


if __name__ == "__main__":
    sys.exit(main())
