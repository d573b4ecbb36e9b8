"""What a command opens: a bundle's tower, and frames to measure with."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from stc.bundle import Bundle
from stc.engines.onnxruntime_backend import PROVIDERS, OnnxRuntimeBackend, share_threads
from stc.runtime.frame import Frame
from stc.runtime.tower import VisionTower
from stc.runtime.video import open_video


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags every command that runs a bundle has."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of stc-export")
    parser.add_argument(
        "--device", choices=tuple(PROVIDERS), default="cpu", help="where ONNX Runtime computes"
    )


def open_tower(bundle: Bundle, device: str) -> VisionTower:
    """The bundle's tower on ONNX Runtime, in a process that belongs to the caller.

    Raises EngineError when the device or a graph cannot be used.
    """
    manifest = bundle.manifest
    backend = open_backend(bundle, device)
    return VisionTower(backend, manifest.vision, manifest.provenance.precision)


def open_backend(bundle: Bundle, device: str) -> OnnxRuntimeBackend:
    """ONNX Runtime for the graphs of `bundle`, in a process that belongs to the caller.

    Raises EngineError when the device cannot be used.
    """
    share_threads()
    return OnnxRuntimeBackend(bundle, "cuda" if device == "cuda" else "cpu")


def frames(video: str | None, count: int) -> list[Frame]:
    """At most `count` frames of `video`, or of seeded noise that moves."""
    if video is None:
        return list(islice(_noise(), count))
    with open_video(video) as source:
        return list(islice(source, count))


def _noise() -> Iterator[Frame]:
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (384, 512, 3), np.uint8)
    index = 0
    while True:
        left = 16 * index % 384
        rgb[128:256, left : left + 128] = random.integers(0, 256, (128, 128, 3), np.uint8)
        yield Frame(index=index, time_s=float(index), rgb=rgb.copy())
        index += 1
