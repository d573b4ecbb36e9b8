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
from stc.engines.library.flavour import FLAVOURS
from stc.errors import SettingsError
from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.shell.printable import one_line
from stc.shell.ranges import one_of

BackendName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
DEVICES = ("cpu", "cuda")

MAX_HELD = 32
"""Frames that are measured with again and again: decoded, so 200 MB of full HD."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags every command that runs a bundle has."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of stc-export")
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


def refuse_idle_device(flags: argparse.Namespace) -> None:
    """Raise SettingsError when nothing of the run would compute where `--device` says."""
    four_bits = getattr(flags, "int4", False) or "int4" in (getattr(flags, "against", None) or ())
    check_device(flags.device, flags.backend, int4=four_bits)


def check_device(device: str, backend: str, *, int4: bool) -> None:
    """Raise SettingsError when neither `backend` nor graphs in four bits compute on `device`."""
    if one_of("--device", device, DEVICES) == "cuda" and backend != "onnxruntime" and not int4:
        raise SettingsError(
            "--device cuda", f"--backend {backend}", "--backend onnxruntime", "leave one out"
        )


def add_int4_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--int4`, which chooses the language graphs with four-bit matrices."""
    help_text = "language matrices in four bits (a bundle of stc-export --int4)"
    parser.add_argument("--int4", action="store_true", help=help_text)


def open_tower(
    bundle: Bundle,
    device: str,
    backend: BackendName = "onnxruntime",
    *,
    streams: int = 1,
    context: int = 0,
) -> VisionTower:
    """The bundle's tower on what `open_backend` opens, which raises as that does."""
    manifest = bundle.manifest
    opened = open_backend(bundle, device, backend, streams=streams, context=context)
    try:
        return VisionTower(opened, manifest.vision, manifest.provenance.precision)
    except BaseException:
        opened.close()
        raise


def open_backend(
    bundle: Bundle,
    device: str,
    backend: BackendName = "onnxruntime",
    *,
    int4: bool = False,
    streams: int = 1,
    context: int = 0,
    owns_process: bool = True,
) -> Backend:
    """What computes the graphs of `bundle`, in a process that `owns_process` says is the caller's.

    TensorRT runs the engines that stc-build made for this GPU, after it was checked that
    `streams` streams fit, each with `context` rows of keys and values for questions. With `int4`
    the language graphs are those with four-bit matrices, which only ONNX Runtime has. Raises
    EngineError when the device, an engine or a graph cannot be used.
    """
    if backend != "onnxruntime":
        from stc.engines.open_tensorrt import open_tensorrt

        if int4:
            raise SettingsError("--int4", f"--backend {backend}", "--backend onnxruntime")
        flavour = next(flavour for flavour in FLAVOURS if flavour == backend)
        return open_tensorrt(bundle, flavour, _say, context=context, streams=streams)
    fix = "install it with: pip install onnxruntime, or use --backend tensorrt"
    optional.load("onnxruntime", "onnxruntime", subject="ONNX Runtime", fix=fix)
    from stc.engines.onnxruntime_backend import OnnxRuntimeBackend, share_threads

    if owns_process:
        share_threads()
    return OnnxRuntimeBackend(bundle, "cuda" if device == "cuda" else "cpu", int4=int4)


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
