"""`stc-eval`: what does compression cost in answers? Methods beside dense frames, scene by scene.

Dense (`off`) and, where something is asked, `blind` are always measured too. A run that was killed
goes on where it was when it is started again. `--benchmark` asks the questions of a public
benchmark, and `--score` scores a file of answers without a bundle.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from stc.bundles.bundle import Bundle
from stc.engines.library.plan import context_rows
from stc.errors import SettingsError
from stc.runtime.commands import benchmark
from stc.runtime.evaluate import data as evaluate_data
from stc.runtime.evaluate.benchmarks import running
from stc.runtime.evaluate.data import SCENES, Data
from stc.runtime.evaluate.instrument import Instrument
from stc.runtime.evaluate.method import Method, Towers
from stc.runtime.evaluate.methods import METHODS, methods_of
from stc.runtime.evaluate.methods.blind import BLIND
from stc.runtime.evaluate.methods.stc_methods import DENSE
from stc.runtime.evaluate.reader import Reader, spec_of
from stc.runtime.evaluate.report.files import NAMES as REPORT
from stc.runtime.evaluate.report.files import write_report
from stc.runtime.evaluate.report.table import print_summary
from stc.runtime.evaluate.store import NAMES as STORED
from stc.runtime.evaluate.store import goes_on, open_store
from stc.runtime.evaluate.summary import Figures, summary
from stc.runtime.figures.machine import machine_facts
from stc.runtime.output import document_output, refuse_shared_paths
from stc.runtime.parity.report import parity_console
from stc.runtime.parity.sides import PYTORCH
from stc.runtime.stream import opening
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS
from stc.shell import command
from stc.shell.command import Console, stdout_outlived
from stc.shell.progress import PLAIN_S, Progress
from stc.shell.ranges import MAX_COUNT, whole_flag

OUTPUT = Path("out/eval")
MOST = 8
"""Text tokens of an answer: those of scenes are a word."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _begun(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-eval", description=__doc__)
    opening.add_flags(parser, required=False)
    opening.add_weights_flag(parser)
    presets = [DENSE, *(name for name in PRESETS if name != DENSE)]
    parser.add_argument(
        "--methods",
        metavar="NAME,..",
        help=f"any of {', '.join(METHODS)}; NAME:FIELD=VALUE:.. sets a method's own settings, as "
        f"cacher:reference_interval=8; default {','.join(presets)}, of --benchmark "
        f"{benchmark.METHODS}",
    )
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="scenes, the frozen test set, or clip:FILE, a video about which nothing is asked; "
        "default scenes; with --benchmark the folder, or the file of questions, of it",
    )
    parser.add_argument(
        "--limit",
        type=whole_flag(1, MAX_COUNT),
        metavar="N",
        help="first scenes measured, or questions of --benchmark, for a quick look, default all",
    )
    parser.add_argument(
        "--frames",
        type=whole_flag(1, MAX_COUNT),
        metavar="N",
        help=f"frames of a clip, default {evaluate_data.FRAMES}",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=whole_flag(1, MAX_COUNT),
        metavar="N",
        help=f"text tokens of an answer at most, default {MOST}, of --benchmark {running.MOST}",
    )
    parser.add_argument("--checkpoint", metavar="DIR_OR_ID", help="weights for PyTorch's methods")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of finished scenes and the report, default out/eval/NAME of the bundle, "
        "NAME-CLIP for a clip",
    )
    parser.add_argument(
        "--force", action="store_true", help="measure again what --output holds already"
    )
    parser.add_argument("--json", metavar="OUT", help="file, or - for the last line of stdout")
    benchmark.add_flags(parser)
    flags = parser.parse_args(arguments)
    benchmark.check(parser, flags)
    if flags.benchmark is None:
        defaults = {"methods": ",".join(presets), "data": SCENES, "max_new_tokens": MOST}
        for name, value in defaults.items():
            if getattr(flags, name) is None:
                setattr(flags, name, value)
    return flags


def _begun(flags: argparse.Namespace) -> int:
    if flags.score is not None:
        return benchmark.score_answers(flags)
    if flags.benchmark is not None:
        return benchmark.evaluate(flags, OUTPUT / flags.bundle.resolve().name)
    return _evaluate(flags)


def _evaluate(flags: argparse.Namespace) -> int:
    opening.check_device(flags.device, flags.backend, flags.weights)
    methods = methods_of(flags.methods)
    _, _, video = flags.data.partition(evaluate_data.CLIP)
    # Scenes and clips are measured side by side.
    name = flags.bundle.resolve().name + (f"-{Path(video).stem}" if video else "")
    output = flags.output or OUTPUT / name
    refuse_shared_paths(
        {"--json": flags.json, "--output": output},
        video=video or None,
        bundle=flags.bundle,
        checkpoint=flags.checkpoint,
    )
    bundle = Bundle.open(flags.bundle)
    data = evaluate_data.open_data(flags.data, flags.frames, flags.limit)
    methods = _with_baselines(methods, data)
    for method in methods.values():
        method.settings(bundle.manifest.vision)
    if BLIND.name in methods:
        spec_of(bundle)
    try:
        written = document_output(flags.json, output, (*STORED, *REPORT))
        with stdout_outlived(), ExitStack() as opened, written as write:
            with command.unmasked_stops():
                document = _measured(flags, bundle, data, methods, output, opened)
            console = parity_console()
            print_summary(console, document)
            console.say(f"report: {output / 'report.html'}")
            write(document)
    except KeyboardInterrupt:
        command.stop_handled()
        line = f"interrupted; finished scenes are in {output}, the same command goes on"
        Console(stderr=True).say(line)
        return command.INTERRUPTED
    return 0


def _with_baselines(methods: Mapping[str, Method], data: Data) -> dict[str, Method]:
    """`methods`, dense before them and, where something is asked, blind behind them."""
    with_questions = any(item.questions for item in data.items)
    behind = {BLIND.name: BLIND} if with_questions else {}
    if not with_questions and BLIND.name in methods:
        raise SettingsError(f"--methods {BLIND.name}", f"{data.name} asks nothing")
    return {DENSE: METHODS[DENSE], **methods, **behind}


def _measured(
    flags: argparse.Namespace,
    bundle: Bundle,
    data: Data,
    methods: Mapping[str, Method],
    output: Path,
    opened: ExitStack,
) -> Figures:
    manifest = bundle.manifest
    asks = any(item.questions for item in data.items)
    # Every frame of a stream is remembered.
    frames = max(len(item.pictures()) for item in data.items)
    context = context_rows(frames * manifest.vision.pooled) if asks else 0
    backend = opening.open_backend(
        bundle, flags.device, flags.backend, flags.weights, context=context, language=asks
    )
    opened.callback(backend.close)
    tower = VisionTower(backend, manifest.vision, manifest.provenance.precision)
    towers = opened.enter_context(Towers(bundle, tower, flags.checkpoint))
    told: dict[str, Any] = {
        "bundle": manifest.provenance.checkpoint,
        "bundle_sha256": hashlib.sha256(manifest.model_dump_json().encode()).hexdigest(),
        "precision": manifest.provenance.precision,
        "backend": backend.name,
        "weights": flags.weights,
        "max_new_tokens": flags.max_new_tokens if asks else None,
    }
    header = {**told, "data": data.name, "data_sha256": data.digest}
    reader = Reader(bundle, backend, flags.max_new_tokens) if asks else None
    if any(method.runtime == PYTORCH for method in methods.values()):
        _ = towers.torch  # asked for here, so that what is missing is told before anything runs
    # Last of all: what cannot be measured leaves no folder behind.
    store = opened.enter_context(open_store(output))
    instrument = Instrument(towers, reader, data, methods, store, header, force=flags.force)
    console, unit = Console(stderr=True), "questions" if asks else "clips"
    if there := instrument.there:
        console.say(goes_on(there, instrument.whole, len(methods), unit))
    with Progress(console=console, every_s=PLAIN_S) as progress:
        task = progress.add_task(f"{unit} measured", total=instrument.whole, completed=there)
        instrument.run(partial(progress.advance, task))
    records = {label: file.records for label, file in instrument.files.items()}
    document = {
        **told,
        **summary(data, methods, records, manifest.vision),
        "machine": machine_facts(),
    }
    write_report(store.root, document, data, records)
    return document


if __name__ == "__main__":
    sys.exit(main())
