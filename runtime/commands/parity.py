"""`stc-parity`: does a bundle equal PyTorch? Graph by graph and end to end, frame after frame.

On TensorRT captured frames are compared as well; and without PyTorch, as on a device, the engines
are compared with ONNX Runtime on the same graphs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from stc import settings
from stc.bundles.bundle import Bundle
from stc.engines.library.plan import CONTEXTS
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import LanguageError, SettingsError, VideoError
from stc.manifest import Manifest
from stc.method.graphs import vision_graphs
from stc.prompts.prompt import Prompt
from stc.runtime.answers.stream_language import open_model
from stc.runtime.bench.bench import ENOUGH, measure_latency
from stc.runtime.figures.machine import machine_facts
from stc.runtime.language.model import LanguageModel
from stc.runtime.output import document_output, refuse_shared_paths
from stc.runtime.parity.language import compare_language, language_steps
from stc.runtime.parity.report import ParityReport, parity_console, print_parity
from stc.runtime.parity.sides import (
    PYTORCH,
    Against,
    TowerStream,
    language_side,
    other_side,
    vision_side,
    whole_model,
)
from stc.runtime.parity.vision import (
    captured_frames,
    compare_captured,
    compare_graphs,
    compare_streams,
)
from stc.runtime.parity.whole import compare_whole_answer, compare_whole_vision, whole_steps
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame, without_credentials
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import SELECTIONS, Settings
from stc.shell import command
from stc.shell.command import Console, stdout_outlived
from stc.shell.progress import PLAIN_S, Progress
from stc.shell.ranges import whole_flag

MODES = 3
"""dense, layerwise, shared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 equal, 1 not equal."""
    return command.run(lambda: _parity(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-parity", description=__doc__)
    opening.add_flags(parser)
    parser.add_argument("--checkpoint", metavar="DIR_OR_ID", help="the checkpoint exported")
    parser.add_argument("--video", metavar="FILE", help="frames compared, default seeded noise")
    parser.add_argument(
        "--frames",
        type=whole_flag(2, opening.MAX_HELD),
        default=4,
        metavar="N",
        help=f"frames compared, 2 to {opening.MAX_HELD}, default 4",
    )
    parser.add_argument("--json", metavar="OUT", help="file, or - for the last line of stdout")
    settings.add_flags(parser)
    opening.add_weights_flag(parser)
    parser.add_argument(
        "--vision-only", action="store_true", help="leave the language side uncompared"
    )
    return parser.parse_args(arguments)


def _parity(flags: argparse.Namespace) -> int:
    opening.check_device(flags.device, flags.backend, flags.weights)
    refuse_shared_paths(
        {"--json": flags.json}, video=flags.video, bundle=flags.bundle, checkpoint=flags.checkpoint
    )
    with stdout_outlived(), ExitStack() as device, document_output(flags.json) as write:
        document = _compared(flags, device)
        write(document)
    return 0 if document["passed"] else 1


def _compared(flags: argparse.Namespace, device: ExitStack) -> dict[str, Any]:
    bundle = Bundle.open(flags.bundle)
    manifest = bundle.manifest
    chosen = settings.from_flags(flags, manifest.default_settings, manifest.vision.pooled)
    if flags.preset is None and flags.reference_interval is None:
        # A bundle of dense streams is compared on both kinds of frame all the same.
        chosen = replace(chosen, reference_interval=max(2, chosen.reference_interval))
    with_language = manifest.language is not None and not flags.vision_only
    _refuse_idle_flags(flags, manifest, with_language=with_language)
    frames = opening.frames(flags.video, flags.frames)
    video = "seeded noise" if flags.video is None else without_credentials(flags.video)
    if len(frames) < 2:
        raise VideoError(video, f"{len(frames)} frame", "at least 2 to compare")
    others = {}
    if flags.weights is not None:
        others[flags.weights] = opening.open_backend(
            bundle, flags.device, weights=flags.weights, vision=False, language=with_language
        )
    context = CONTEXTS[0] if with_language else 0
    tower = opening.open_tower(bundle, flags.device, flags.backend, context=context)
    device.callback(tower.close)
    checkpoint, report = flags.checkpoint, ParityReport(manifest.provenance.precision)
    on_device = isinstance(tower.backend, TensorRtBackend)
    against = other_side(checkpoint, on_device=on_device)
    with Progress(console=Console(stderr=True), every_s=PLAIN_S) as progress:
        run = _Comparison(bundle, checkpoint, tower, frames, chosen, against, report, progress)
        captured, latency = run.vision()
        model = open_model(bundle, tower.backend) if with_language else None
        if model is not None:
            run.language(model, {name: open_model(bundle, one) for name, one in others.items()})
        whole = f"not compared with transformers: there is no {PYTORCH} here"
        if against == PYTORCH:
            whole = run.whole(model)
    shown = f"{len(frames)} of {video}"
    print_parity(
        parity_console(),
        report,
        latency,
        backend=tower.backend.name,
        against=against,
        shown=shown,
        whole=whole,
    )
    return {
        "bundle": manifest.provenance.checkpoint,
        "against": against,
        "frames": shown,
        "settings": asdict(chosen),
        "whole_model": whole,
        "captured": sorted(captured),
        **report.to_json(),
        "latency": latency,
        "machine": machine_facts(),
    }


def _refuse_idle_flags(
    flags: argparse.Namespace, manifest: Manifest, *, with_language: bool
) -> None:
    """Raise SettingsError for a flag that would change nothing, or asks for what is not there."""
    if manifest.language is None and flags.vision_only:
        raise SettingsError("--vision-only", "requires a bundle with a language side to leave out")
    if not with_language and flags.backend == "onnxruntime":
        for flag, value in (("--pruner", flags.pruner), ("--anchor-window", flags.anchor_window)):
            if value is not None:
                got = "requires a language side compared, which reads the tokens kept"
                raise SettingsError(flag, got, fix="every pruner is compared without it")


@dataclass(frozen=True)
class _Comparison:
    """What is compared, whose rows go into `report`, and the bar that shows it."""

    bundle: Bundle
    checkpoint: str | None
    tower: VisionTower
    frames: list[Frame]
    chosen: Settings
    against: Against
    report: ParityReport
    progress: Progress

    def vision(self) -> tuple[set[str], dict[str, Any]]:
        """The tower is compared. The kinds of frame that were captured, and latencies."""
        tower, frames, chosen, report = self.tower, self.frames, self.chosen, self.report
        preprocess = Preprocessor(tower.spec)
        pixels = [preprocess(frame.rgb).copy() for frame in frames]
        steps = len(vision_graphs(tower.spec.blocks)) + MODES * len(frames)
        on_device = isinstance(tower.backend, TensorRtBackend)
        if on_device:
            steps += len(SELECTIONS) * captured_frames(chosen)
        captured: set[str] = set()
        with vision_side(self.bundle, self.checkpoint, self.against, chosen) as (graphs, stream):
            self._tick("comparing", steps)
            compare_graphs(tower, graphs, (pixels[0], pixels[1]), chosen, report)
            compare_streams(tower, stream, pixels, chosen, report)
            if on_device:
                captured = compare_captured(tower, frames, chosen, report)
            measuring = self.progress.add_task("measuring latency", total=ENOUGH)
            with closing(StreamSession(tower, chosen)) as session:
                bench = measure_latency(
                    session,
                    frames,
                    None if isinstance(stream, TowerStream) else stream,
                    lambda measured: self.progress.update(measuring, completed=measured),
                )
        return captured, bench.figures()

    def language(self, model: LanguageModel, others: Mapping[str, LanguageModel]) -> None:
        """The language side is compared, behind the kept tokens of the frames."""
        with closing(StreamSession(self.tower, self.chosen)) as session:
            video = np.concatenate([session.push(frame).tokens for frame in self.frames])
        with language_side(self.bundle, self.checkpoint, self.against) as (graphs, decoder):
            self._tick("comparing language", language_steps(model.spec.blocks))
            compare_language(model, graphs, decoder, video, self.report, others)

    def whole(self, model: LanguageModel | None) -> str:
        """The whole model is compared; returns what of it was, or why nothing was."""
        with whole_model(self.bundle, self.checkpoint) as whole:
            if whole is None:
                return "not compared with transformers: its weights are random, in no checkpoint"
            steps = whole_steps(len(self.frames), with_language=model is not None)
            self._tick("comparing whole model", steps)
            found = ""
            if whole.missing:
                found = (
                    f"; transformers found no {whole.missing[0]} in the checkpoint and made one up"
                )
            tokens = compare_whole_vision(self.tower, self.frames, whole, self.report)
            if model is None:
                return f"its visual tokens compared with transformers'{found}"
            try:
                prompt = Prompt(self.bundle.companions(), model.spec, self.bundle.root)
                text = "a question"
            except LanguageError as error:
                prompt, text = None, f"noise for text ({error})"
            compare_whole_answer(model, prompt, tokens, whole, self.report)
        return f"compared with transformers', from pictures to stop tokens, with {text}{found}"

    def _tick(self, what: str, steps: int) -> None:
        """The report's ticks move a bar of their own from here on."""
        task = self.progress.add_task(what, total=steps)
        self.report.tick = partial(self.progress.advance, task)


if __name__ == "__main__":
    sys.exit(main())
