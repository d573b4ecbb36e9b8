"""A bundle of a few hundred bytes with real files; its graphs are empty and cannot be run."""

from __future__ import annotations

from pathlib import Path

from stc.bundles.bundle import file_entry
from stc.bundles.writer import BundleWriter
from stc.manifest import (
    GRAPHS,
    WEIGHTS,
    DefaultSettings,
    GraphEntry,
    Manifest,
    Provenance,
    VisionSpec,
    Weights,
)
from stc.method.graphs import vision_graphs, vision_ports
from stc.settings import PRESETS
from tests.squares import square

SPEC = VisionSpec(
    **square(image_size=20, patch_size=4),
    width=32,
    heads=2,
    mlp_width=64,
    blocks=1,
    activation="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    language_width=16,
    projector_activation="gelu",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)


def empty_graph(name: str) -> bytes:
    """The smallest ONNX file: a graph called `name`."""
    graph = b"\x12" + bytes([len(name)]) + name.encode()
    return b"\x3a" + bytes([len(graph)]) + graph


FILES = {
    **{f"{GRAPHS}/{name}.onnx": empty_graph(name) for name in vision_graphs(SPEC.blocks)},
    WEIGHTS: bytes(range(256)),
    "config.json": b"{}\n",
}
"""Every file the tiny bundle's manifest lists, and its bytes."""


def provenance(
    model: str = "demo", checkpoint: str = "demo", weights: Weights = "demo"
) -> Provenance:
    return Provenance(
        model=model,
        checkpoint=checkpoint,
        weights=weights,
        stc_version="0.1.0",
        versions={"torch": "2.13.0"},
        opset=18,
        precision="fp32",
    )


def tiny_manifest(root: Path, made: Provenance | None = None) -> Manifest:
    """The manifest of the files of FILES as they stand below `root`."""
    made = made or provenance()
    return Manifest(
        vision=SPEC,
        graphs={
            name: GraphEntry(
                file=file_entry(root, f"{GRAPHS}/{name}.onnx"),
                inputs=ports.inputs,
                outputs=ports.outputs,
            )
            for name, ports in vision_ports(SPEC, made.precision).items()
        },
        files=tuple(file_entry(root, path) for path in (WEIGHTS, "config.json")),
        settings=DefaultSettings(**vars(PRESETS["off"])),
        provenance=made,
    )


def write_files(root: Path, salt: bytes = b"") -> None:
    """The files of FILES stand below `root`, each ending in `salt`."""
    (root / GRAPHS).mkdir()
    for path, content in FILES.items():
        (root / path).write_bytes(content + salt)


def write_bundle(
    path: Path, *, force: bool = False, salt: bytes = b"", made: Provenance | None = None
) -> Path:
    """The tiny bundle stands at `path`; `salt` makes its files differ from another's."""
    with BundleWriter(path, force=force) as writer:
        write_files(writer.root, salt)
        writer.finish(tiny_manifest(writer.root, made))
    return path
