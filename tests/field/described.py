"""A bundle of a tower and a decoder with real files, whose manifest a test may spoil."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from stc.bundles.bundle import file_entry
from stc.bundles.writer import BundleWriter
from stc.manifest import (
    GRAPHS,
    LANGUAGE_WEIGHTS,
    MANIFEST,
    WEIGHTS,
    DefaultSettings,
    GraphEntry,
    Manifest,
    Variant,
)
from stc.method.graphs import vision_ports
from stc.ports import GraphPorts, language_ports
from stc.settings import PRESETS
from tests.test_conformity import LANGUAGE
from tests.tiny_bundle import SPEC, provenance

Place = tuple[str | int, ...]
"""The way to a value in a document."""


def write_described(path: Path) -> dict[str, Any]:
    """The bundle stands at `path`; returns its manifest as a document."""
    language = LANGUAGE.model_copy(update={"width": SPEC.language_width})
    with BundleWriter(path) as writer:
        (writer.root / GRAPHS).mkdir()

        def entries(graphs: dict[str, GraphPorts], ending: str = "") -> dict[str, GraphEntry]:
            made = {}
            for name, ports in graphs.items():
                file = f"{GRAPHS}/{name}{ending}.onnx"
                (writer.root / file).write_bytes(name.encode())
                entry = file_entry(writer.root, file)
                made[name] = GraphEntry(file=entry, inputs=ports.inputs, outputs=ports.outputs)
            return made

        for file in (WEIGHTS, LANGUAGE_WEIGHTS):
            (writer.root / file).write_bytes(file.encode())
        vision = vision_ports(SPEC, "fp32")
        writer.finish(
            Manifest(
                vision=SPEC,
                language=language,
                graphs=entries(vision | language_ports(language, "fp32")),
                variants={
                    "fused": Variant(
                        graphs=entries(language_ports(language, "fp32"), "_fused"),
                        default=True,
                    )
                },
                files=tuple(file_entry(writer.root, file) for file in (WEIGHTS, LANGUAGE_WEIGHTS)),
                settings=DefaultSettings(**vars(PRESETS["off"])),
                provenance=provenance(),
            )
        )
    document: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return document


def places(document: object, here: Place = ()) -> Iterator[Place]:
    """The way to every value in `document`, the whole included."""
    yield here
    inner: Any = ()
    if isinstance(document, dict):
        inner = document.items()
    elif isinstance(document, list):
        inner = enumerate(document)
    for step, value in inner:
        yield from places(value, (*here, step))


def spoilt(document: dict[str, Any], place: Place, value: object) -> Any:
    """A copy of `document` with `value` at `place`."""
    if not place:
        return value
    copy: Any = json.loads(json.dumps(document))
    there = copy
    for step in place[:-1]:
        there = there[step]
    there[place[-1]] = value
    return copy


@contextmanager
def before_long(seconds: float = 60.0) -> Iterator[None]:
    """What takes the body for ever is stopped and fails; nothing is said of how fast it is."""

    def stop(number: int, _: FrameType | None) -> None:
        raise AssertionError(f"not done after {seconds} seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
