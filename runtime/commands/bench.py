"""`stc-bench`: latency of a bundle's tower on this machine, last line one JSON object.

The tower is measured at reference interval 4 unless --reference-interval or --preset says another.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

from stc import settings
from stc.bundles.bundle import Bundle
from stc.engines.engine import Backend
from stc.engines.library.plan import context_rows
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.engines.tensorrt.captured import CapturedRunner
from stc.errors import SettingsError
from stc.manifest import MAX_POSITIONS, ON_REQUEST
from stc.runtime.answers.stream_language import open_model
from stc.runtime.bench.bench import Bench
from stc.runtime.bench.prefill import PrefillBench
from stc.runtime.figures.machine import gpu_facts, machine_facts, peak_rss_bytes
from stc.runtime.output import document_output, refuse_shared_paths
from stc.runtime.parity.sides import torch_language_side, torch_side
from stc.runtime.stream import opening
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import without_credentials
from stc.shell import command
from stc.shell.command import Console
from stc.shell.progress import PLAIN_S, Progress
from stc.shell.ranges import MAX_COUNT, whole_flag

TORCH = "torch"
"""What `--against` may name that is no weights of the bundle."""
INTERVAL = 4
"""Reference interval measured by default: the paper's for the cacher alone."""
CONTEXT = 1000
"""Tokens before the frame whose prefill is measured."""
LONGEST_INTERVAL = 1000
"""Frames of a reference interval: one interval is run, four on a GPU, before any is measured."""
WARM_UP = 2
"""Rounds of the language side that do not count."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _bench(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-bench", description=__doc__)
    opening.add_flags(parser)
    parser.add_argument(
        "--frames",
        type=whole_flag(1, MAX_COUNT),
        default=24,
        metavar="N",
        help="frames measured, or rounds of --prefill, default 24; past "
        f"{opening.MAX_HELD} the first come again",
    )
    parser.add_argument("--video", metavar="FILE", help="frames measured, default seeded noise")
    parser.add_argument(
        "--against",
        action="append",
        metavar=f"{TORCH}|NAME",
        help="measure PyTorch too, or --prefill with --weights NAME; default none; repeatable",
    )
    parser.add_argument("--checkpoint", metavar="DIR_OR_ID", help="weights for --against torch")
    parser.add_argument(
        "--json", default="-", metavar="OUT", help="file, or - for stdout (default)"
    )
    parser.add_argument(
        "--prefill", action="store_true", help="measure the language side instead of the tower"
    )
    parser.add_argument(
        "--context",
        type=whole_flag(1, MAX_POSITIONS),
        metavar="S",
        help="--prefill: tokens before the frame, default 1000",
    )
    opening.add_weights_flag(parser)
    settings.add_flags(parser)
    return parser.parse_args(arguments)


def _bench(flags: argparse.Namespace) -> int:
    if flags.context is not None and not flags.prefill:
        raise SettingsError("--context", f"got {flags.context}, which requires --prefill")
    for name in _others(flags):
        if name == flags.weights or not flags.prefill:
            got = "names weights, which requires --prefill, and others than --weights"
            raise SettingsError(f"--against {name}", got, "", f"or --against {TORCH}")
    if flags.checkpoint is not None and TORCH not in (flags.against or ()):
        raise SettingsError("--checkpoint", "requires --against torch")
    opening.check_device(flags.device, flags.backend, flags.weights, *_others(flags))
    if flags.prefill and flags.video is not None:
        raise SettingsError("--video", "cannot be combined with --prefill, which runs no tower")
    refuse_shared_paths(
        {"--json": flags.json}, video=flags.video, bundle=flags.bundle, checkpoint=flags.checkpoint
    )
    with ExitStack() as device, document_output(flags.json) as write:
        write((_prefill if flags.prefill else _measured)(flags, device))
    return 0


def _others(flags: argparse.Namespace) -> list[str]:
    """Weights of the bundle that are measured too."""
    return [name for name in dict.fromkeys(flags.against or ()) if name != TORCH]


def _prefill(flags: argparse.Namespace, device: ExitStack) -> dict[str, Any]:
    start = time.perf_counter()
    bundle = Bundle.open(flags.bundle)
    pooled = bundle.manifest.vision.pooled
    chosen = settings.from_flags(flags, bundle.manifest.default_settings, pooled)
    context = CONTEXT if flags.context is None else flags.context
    opened = partial(opening.open_backend, bundle, flags.device, vision=False)
    others = {name: opened(weights=name) for name in _others(flags)}
    backend = opened(flags.backend, flags.weights, context=context_rows(context + pooled))
    device.callback(backend.close)
    model = open_model(bundle, backend)
    load_s = time.perf_counter() - start
    models = {name: open_model(bundle, one) for name, one in others.items()}
    with ExitStack() as stack:
        torch = None
        if TORCH in (flags.against or ()):
            torch = stack.enter_context(torch_language_side(bundle, flags.checkpoint))[1]
        bench = PrefillBench(model, pooled, chosen.kept(pooled), context, torch, models)
        for _ in range(WARM_UP):
            bench.measure()
        bench.forget()
        with Progress(console=Console(stderr=True), every_s=PLAIN_S) as progress:
            for _ in progress.track(range(flags.frames)):
                bench.measure()
    variants, used = bundle.manifest.variants, {flags.weights, *models}
    return {
        "bundle": bundle.manifest.provenance.checkpoint,
        "precision": bundle.manifest.provenance.precision,
        "backend": model.backend.name,
        "settings": asdict(chosen),
        "weights": flags.weights,
        **{
            f"{name}_group": variants[name].options.get("group") if name in used else None
            for name in ON_REQUEST
        },
        "load_s": load_s,
        "peak_rss_bytes": peak_rss_bytes(),
        **bench.figures(),
        **_gpu(backend),
        "machine": machine_facts(),
    }


def _measured(flags: argparse.Namespace, device: ExitStack) -> dict[str, Any]:
    shown = opening.frames(flags.video, flags.frames)
    start = time.perf_counter()
    bundle = Bundle.open(flags.bundle)
    spec = bundle.manifest.vision
    default = replace(bundle.manifest.default_settings, reference_interval=INTERVAL)
    chosen = settings.from_flags(flags, default, spec.pooled)
    if chosen.reference_interval > LONGEST_INTERVAL:
        raise SettingsError(
            "--reference-interval",
            f"got {chosen.reference_interval}",
            f"at most {LONGEST_INTERVAL} here: as many frames are run before any is measured",
        )
    tower = opening.open_tower(bundle, flags.device, flags.backend, flags.weights)
    device.callback(tower.close)
    load_s = time.perf_counter() - start
    session = StreamSession(tower, chosen)
    bench = Bench(session)
    frames = cycle(shown)
    warming = session.runner.warm_up_runs * chosen.reference_interval
    with Progress(console=Console(stderr=True), every_s=PLAIN_S) as progress:
        for frame in progress.track(islice(frames, warming), warming, description="Warming up"):
            session.push(frame)
    rss = peak_rss_bytes()
    with ExitStack() as stack:
        stream = None
        if flags.against:
            stream = stack.enter_context(torch_side(bundle, flags.checkpoint))[1]
            for frame in islice(frames, chosen.reference_interval):
                bench.measure(frame, stream)
            bench = Bench(session)
        with Progress(console=Console(stderr=True), every_s=PLAIN_S) as progress:
            for frame in progress.track(islice(frames, flags.frames), flags.frames):
                bench.measure(frame, stream)
    return {
        "bundle": bundle.manifest.provenance.checkpoint,
        "precision": bundle.manifest.provenance.precision,
        "backend": tower.backend.name,
        "weights": flags.weights,
        "settings": asdict(chosen),
        "video": None if flags.video is None else without_credentials(flags.video),
        "load_s": load_s,
        "peak_rss_bytes": rss,
        **bench.figures(),
        **_captured(session),
        **_gpu(tower.backend),
        "machine": machine_facts(),
    }


def _captured(session: StreamSession) -> dict[str, Any]:
    """The kinds of frame that were one CUDA graph; nothing on other backends."""
    if not isinstance(session.runner, CapturedRunner):
        return {}
    return {"captured": sorted(session.captured)}


def _gpu(backend: Backend) -> dict[str, Any]:
    """The GPU that TensorRT's engines ran on; nothing on other backends."""
    if not isinstance(backend, TensorRtBackend):
        return {}
    return {"gpu": gpu_facts(backend.device.cuda, backend.device.allocated_bytes)}


if __name__ == "__main__":
    sys.exit(main())
