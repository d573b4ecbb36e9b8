"""A checkpoint becomes a bundle: graphs, weights, the checkpoint's own files, manifest."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

import stc
from stc import contracts
from stc.bundle import file_entry
from stc.bundle_writer import BundleWriter
from stc.contracts import PRUNE_CONTRACT
from stc.export.checkpoint import VisionWeights
from stc.export.graph import OPSET, FreeAxis
from stc.export.graphs import GraphWriter, Tick, port_entries, write_graphs
from stc.export.tower import Tower
from stc.export.weights_file import WeightsFile
from stc.manifest import (
    GRAPHS,
    WEIGHTS,
    DefaultSettings,
    GraphEntry,
    Manifest,
    Precision,
    Provenance,
    Weights,
)
from stc.settings import SCORINGS, Settings

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def export_bundle(
    weights: VisionWeights,
    output: Path,
    *,
    model: str,
    kind: Weights,
    precision: Precision,
    settings: Settings,
    force: bool,
    tick: Tick,
) -> Manifest:
    """A bundle of `weights` stands at `output`, every graph equal to torch; returns its manifest.

    Nothing is left at `output` when it fails. Raises ExportError, CheckpointError, BundleError,
    SettingsError.
    """
    settings.kept(weights.spec.pooled)
    with BundleWriter(output, force=force) as writer:
        root = writer.root
        (root / GRAPHS).mkdir()
        tower = Tower(weights, DTYPES[precision])
        with WeightsFile(root / WEIGHTS) as weights_file:
            graph_writer = GraphWriter(
                folder=root / GRAPHS,
                weights=weights_file,
                precision=precision,
                free=FreeAxis("M", weights.spec.tokens),
                tick=tick,
            )
            write_graphs(graph_writer, tower, settings)
        companions = weights.companions()
        for name, content in companions.items():
            (root / name).write_bytes(content)
        manifest = Manifest(
            vision=weights.spec,
            graphs=_graph_entries(root, weights, precision),
            files=tuple(file_entry(root, path) for path in [WEIGHTS, *companions]),
            settings=DefaultSettings(**vars(settings)),
            provenance=Provenance(
                model=model,
                checkpoint=weights.name,
                weights=kind,
                stc_version=stc.__version__,
                versions={name: version(name) for name in ("torch", "transformers", "onnx")},
                opset=OPSET,
                precision=precision,
            ),
        )
        writer.finish(manifest)
    return manifest


def _graph_entries(
    root: Path, weights: VisionWeights, precision: Precision
) -> dict[str, GraphEntry]:
    spec = weights.spec
    memories = {
        contracts.prune_graph(scoring): contracts.memory_width(scoring, spec.language_width)
        for scoring in SCORINGS
    }
    entries = {}
    for name, contract in contracts.vision_graphs(spec.blocks).items():
        memory = memories[name] if contract is PRUNE_CONTRACT else 0
        entries[name] = GraphEntry(
            file=file_entry(root, f"{GRAPHS}/{name}.onnx"),
            inputs=port_entries(contract.inputs, spec, precision, memory),
            outputs=port_entries(contract.outputs, spec, precision, memory),
        )
    return entries
