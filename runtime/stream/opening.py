"""What a command opens: a bundle's tower, and frames to measure with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from stc import optional
from stc.bundles.bundle import Bundle
from stc.engines.engine import Backend
from stc.engines.library.targets import FLAVOURS
from stc.errors import SettingsError, one_line
from stc.manifest import ON_REQUEST
from stc.method.graphs import vision_graphs
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.shell.ranges import one_of

BackendName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
DEVICES = ("cpu", "cuda")

MAX_HELD = 32
"""Frames that are measured with again and again: decoded, so 200 MB of full HD."""


def add_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The flags every command that runs a bundle has, which may be left out unless `required`."""
    told = "directory of stc-export"
    count = None if required else "?"
    parser.add_argument("bundle", type=Path, nargs=count, metavar="BUNDLE", help=told)
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=BACKENDS[0],
        help=f"what computes, default {BACKENDS[0]}",
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where ONNX Runtime computes, default cpu",
    )


def check_device(device: str, backend: str, *weights: str | None) -> None:
    """Raise SettingsError when neither `backend` nor other `weights` compute on `device`."""
    idle = backend != BACKENDS[0] and not any(weights)
    if one_of("--device", device, DEVICES) == "cuda" and idle:
        raise SettingsError(
            "--device cuda", f"--backend {backend}", "--backend onnxruntime", "leave one out"
        )


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--weights`, which chooses a variant of the bundle's graphs, and its short names."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--weights", metavar="NAME", help="other weights in the bundle, default its own"
    )
    for name in ON_REQUEST:
        short = f"--weights {name} (a bundle of stc-export --{name})"
        group.add_argument(
            f"--{name}", dest="weights", action="store_const", const=name, help=short
        )


def open_tower(
    bundle: Bundle,
    device: str,
    backend: BackendName = "onnxruntime",
    weights: str | None = None,
    *,
    streams: int = 1,
    context: int = 0,
) -> VisionTower:
    """The bundle's tower on what `open_backend` opens, which raises as that does."""
    manifest = bundle.manifest
    opened = open_backend(
        bundle, device, backend, weights, streams=streams, context=context, language=False
    )
    try:
        return VisionTower(opened, manifest.vision, manifest.provenance.precision)
    except BaseException:
        opened.close()
        raise


def open_backend(
    bundle: Bundle,
    device: str,
    backend: BackendName = "onnxruntime",
    weights: str | None = None,
    *,
    streams: int = 1,
    context: int = 0,
    vision: bool = True,
    language: bool = True,
    owns_process: bool = True,
) -> Backend:
    """What computes the graphs of `bundle`, in a process that `owns_process` says is the caller's.

    TensorRT runs the engines that stc-build made for this GPU, after it was checked that
    `streams` streams fit, each with `context` rows of keys and values for questions. `weights`
    names a variant of the bundle's graphs. Raises SettingsError when the bundle has no such,
    `backend` does not run it, or it has no graph of what is to run, `vision` or `language`;
    EngineError when the device, an engine or a graph cannot be used.
    """
    bundle.table(f"{backend}-{device}" if backend == BACKENDS[0] else backend, weights)
    if weights is not None:
        tower = vision_graphs(bundle.manifest.vision.blocks)
        graphs = bundle.manifest.variants[weights].graphs
        if not any(vision if name in tower else language for name in graphs):
            fix = "leave it out, or run the side it is of (--ask, --prefill, no --vision-only)"
            raise SettingsError(f"weights {weights}", "none of its graphs is run", "", fix)
    if backend != "onnxruntime":
        from stc.engines.open_tensorrt import open_tensorrt

        flavour = next(flavour for flavour in FLAVOURS if flavour == backend)
        return open_tensorrt(bundle, flavour, _say, context=context, streams=streams)
    fix = "install it with: pip install onnxruntime, or use --backend tensorrt"
    optional.load("onnxruntime", "onnxruntime", subject="ONNX Runtime", fix=fix)
    from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, share_threads

    if owns_process:
        share_threads()
    return OnnxRuntimeBackend(bundle, "cuda" if device == "cuda" else "cpu", weights=weights)


def frames(video: str | None, count: int) -> list[Frame]:
    """At most `count` and MAX_HELD frames of `video`, or of seeded noise that moves."""
    held = min(count, MAX_HELD)
    if video is None:
        return list(islice(_noise(), held))
    with open_video(video) as source:
        return list(islice(source, held))


def _noise() -> Iterator[Frame]:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (384, 512, 3), np.uint8)
    index = 0
    while True:
        left = 16 * index % 384
        rgb[128:256, left : left + 128] = random.integers(0, 256, (128, 128, 3), np.uint8)
        yield Frame(index=index, time_s=float(index), rgb=rgb.copy())
        index += 1


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr)
