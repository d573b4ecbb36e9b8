"""A checkpoint becomes a bundle: graphs, weights, the checkpoint's own files, manifest.

Before it is kept, the whole of it is compared with the model that transformers loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import torch

import stc
from stc.bundles.bundle import file_entry
from stc.bundles.writer import BundleWriter
from stc.contracts import Contract, language_graphs
from stc.errors import CheckpointError, LanguageError
from stc.export.checkpoint.checkpoint import Checkpoint
from stc.export.checkpoint.pretrained import Pretrained
from stc.export.decoders.qwen2.decoder import Decoder
from stc.export.decoders.qwen2.weights import LanguageWeights
from stc.export.graphs.int4_graphs import INT4_WEIGHTS, Int4Writer
from stc.export.graphs.language import write_language_graphs
from stc.export.graphs.trace import OPSET, FreeAxis
from stc.export.graphs.vision import FUSED, INT4, GraphWriter, Tick, graph_file, write_graphs
from stc.export.graphs.weights_file import WeightsFile
from stc.export.graphs.written_graphs import WrittenGraphs
from stc.export.models.llava_onevision import VisionModel
from stc.export.towers.part import VisionWeights
from stc.export.whole_model import check_whole_model
from stc.manifest import (
    GRAPHS,
    LANGUAGE_WEIGHTS,
    WEIGHTS,
    DefaultSettings,
    GraphEntry,
    Group,
    LanguageSpec,
    Manifest,
    Precision,
    Provenance,
    Variant,
    VisionSpec,
    Weights,
    printable,
)
from stc.method.graphs import vision_graphs, vision_ports
from stc.ports import NETWORK_DTYPES, GraphPorts, language_ports
from stc.prompts.prompt import Prompt
from stc.settings import Settings

WHOLE_MODEL = "whole model"
"""What is ticked after the graphs, for a checkpoint."""
DTYPES: dict[Precision, torch.dtype] = {
    precision: getattr(torch, dtype.name) for precision, dtype in NETWORK_DTYPES.items()
}


def export_bundle(
    weights: VisionWeights,
    output: Path,
    *,
    language: LanguageWeights | None = None,
    int4: Group | None = None,
    model: str,
    kind: Weights,
    precision: Precision,
    settings: Settings,
    force: bool,
    tick: Tick,
) -> Manifest:
    """A bundle of `weights` stands at `output`, every graph equal to torch; returns its manifest.

    A checkpoint's answers as the model that transformers loads from there; made-up weights have
    none that could be misread. Without `language` it has no language side; with it, and unless
    `kind` is random, the files beside the weights were found to make prompts. With `int4` that side
    stands there a second time, its matrices in four bits, `int4` values to a scale. Nothing is left
    at `output` when it fails.

    Raises ExportError, CheckpointError, BundleError, SettingsError.
    """
    settings.kept(weights.spec.pooled)
    companions = weights.companions()
    if language is not None and kind != "random":  # random weights have no tokenizer
        _check_prompt(companions, language.spec, weights.name)
    with BundleWriter(output, force=force) as writer:
        root = writer.root
        # Before the graphs, which take minutes: what transformers cannot load is told at once.
        whole = Pretrained(weights) if isinstance(weights, Checkpoint) else None
        (root / GRAPHS).mkdir()
        with WeightsFile(root / WEIGHTS) as weights_file:
            graph_writer = GraphWriter(
                folder=root / GRAPHS,
                weights=weights_file,
                precision=precision,
                free=(FreeAxis("M", weights.spec.tokens),),
                tick=tick,
            )
            write_graphs(graph_writer, VisionModel(weights, DTYPES[precision]), settings)
        stored = [WEIGHTS]
        entries = _entries(root, vision_ports(weights.spec, precision))
        variants: dict[str, Variant] = {}
        if language is not None:
            stored += _write_language(root, language, precision, int4, tick)
            ports = language_ports(language.spec, precision)
            entries |= _entries(root, ports)
            variants = _variants(root, ports, int4)
        if whole is not None:
            check_whole_model(
                WrittenGraphs(root / GRAPHS, precision, _contracts(weights.spec, language)),
                weights.spec,
                language.spec if language is not None else None,
                whole,
            )
            tick(WHOLE_MODEL)
        for name, content in companions.items():
            (root / name).write_bytes(content)
        manifest = Manifest(
            vision=weights.spec,
            language=language.spec if language is not None else None,
            graphs=entries,
            variants=variants,
            files=tuple(file_entry(root, path) for path in [*stored, *companions]),
            settings=DefaultSettings(**vars(settings)),
            provenance=Provenance(
                model=model,
                checkpoint=printable(weights.name),
                weights=kind,
                stc_version=stc.__version__,
                versions={name: version(name) for name in ("torch", "transformers", "onnx")},
                opset=OPSET,
                precision=precision,
            ),
        )
        writer.finish(manifest)
    return manifest


def _check_prompt(files: Mapping[str, bytes], spec: LanguageSpec, name: str) -> None:
    """A question can be asked by these files; found now rather than on a device.

    Raises CheckpointError.
    """
    try:
        Prompt(files, spec, name)
    except LanguageError as error:
        fix = "; ".join(filter(None, (error.fix, "or export without answers: --vision-only")))
        raise CheckpointError(error.subject, error.got, error.expected, fix) from error


def _write_language(
    root: Path, language: LanguageWeights, precision: Precision, int4: Group | None, tick: Tick
) -> list[str]:
    """The language graphs stand in `root`; returns their weights files."""
    most = language.spec.max_positions
    stored = [LANGUAGE_WEIGHTS]
    with ExitStack() as stack:
        writer = GraphWriter(
            folder=root / GRAPHS,
            weights=stack.enter_context(WeightsFile(root / LANGUAGE_WEIGHTS)),
            precision=precision,
            free=(FreeAxis("m", most), FreeAxis("S", most)),
            tick=tick,
        )
        int4_writer = None
        if int4 is not None:
            stored.append(INT4_WEIGHTS)
            int4_weights = stack.enter_context(WeightsFile(root / INT4_WEIGHTS))
            int4_writer = Int4Writer(root / GRAPHS, int4_weights, precision, int4, language.spec)
        write_language_graphs(writer, Decoder(language, DTYPES[precision]), int4_writer)
    return stored


def _contracts(spec: VisionSpec, language: LanguageWeights | None) -> dict[str, Contract]:
    blocks = 0 if language is None else language.spec.blocks
    return vision_graphs(spec.blocks) | language_graphs(blocks)


def _variants(
    root: Path, graphs: Mapping[str, GraphPorts], int4: Group | None
) -> dict[str, Variant]:
    """The variants that were written beside the language graphs; only ONNX Runtime runs them."""
    variants = {FUSED: Variant(graphs=_entries(root, graphs, FUSED), default=True)}
    if int4 is not None:
        variants[INT4] = Variant(
            base=FUSED,
            graphs=_entries(root, graphs, INT4),
            weights=INT4_WEIGHTS,
            options={"group": int4},
        )
    return variants


def _entries(
    root: Path, graphs: Mapping[str, GraphPorts], variant: str = ""
) -> dict[str, GraphEntry]:
    """The entries of `graphs`, or of those that `variant` has."""
    files = {name: f"{GRAPHS}/{graph_file(name, variant)}" for name in graphs}
    return {
        name: GraphEntry(
            file=file_entry(root, files[name]), inputs=ports.inputs, outputs=ports.outputs
        )
        for name, ports in graphs.items()
        if not variant or (root / files[name]).exists()
    }
