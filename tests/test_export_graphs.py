"""What an export leaves on disk: graphs that are portable, lean, alike every time, and proven
equal to PyTorch, or nothing at all."""

from __future__ import annotations

import copy
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper
from torch import Tensor, nn
from torch.nn import functional

from stc import contracts
from stc.bundles.bundle import Bundle
from stc.contracts import Contract
from stc.errors import ExportError
from stc.export.graphs import trace as trace_module
from stc.export.graphs import vision as graphs
from stc.export.graphs.check import GraphCheck
from stc.export.graphs.trace import IR_VERSION, OPSET, bind, trace
from stc.export.graphs.weights_file import ALIGNMENT, Span
from stc.export.made_up.synthetic import RandomCheckpoint
from stc.export.models.llava_onevision import VisionModel, projector_shapes
from stc.export.towers.siglip.tower import SIGLIP, Keys, Mlp, Update
from stc.manifest import WEIGHTS
from stc.method.graphs import (
    keys_graph,
    kind_of,
    memory_width,
    prune_graph,
    update_graph,
    vision_graphs,
)
from stc.onnx_files.operators import PORTABLE_OPS
from stc.settings import SCORINGS
from tests.graph_files import graph_file
from tests.own_process import ROOT, run_python
from tests.trace_cache import TraceCache
from tests.vision_cases import GOLDEN, Exported, export, golden_weights
from tests.vision_cases import WEIGHTS as CASES

Exporting = Callable[[str], Exported]

ELEMENTS = {"float32": np.float32, "float16": np.float16, "int64": np.int64}


@pytest.fixture(params=[GOLDEN[0], "so400m heads", "half", "demo"])
def bundle(request: pytest.FixtureRequest, exported: Exporting, demo_bundle: Path) -> Bundle:
    if request.param == "demo":
        return Bundle.open(demo_bundle)
    return exported(request.param).bundle


def contracts_of(bundle: Bundle) -> dict[str, Contract]:
    """Every graph the bundle must have; the demo has a language side."""
    language = bundle.manifest.language
    blocks = {} if language is None else contracts.language_graphs(language.blocks)
    return vision_graphs(bundle.manifest.vision.blocks) | blocks


def models(bundle: Bundle) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Every graph of the bundle, without its weights."""
    for name in bundle.manifest.graphs:
        yield name, onnx.load(graph_file(bundle, name), load_external_data=False)


def vision_models(bundle: Bundle) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs of the vision side."""
    names = vision_graphs(bundle.manifest.vision.blocks)
    return ((name, model) for name, model in models(bundle) if name in names)


def spans(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Offset and length in the weights file of every parameter."""
    found: dict[str, tuple[int, int]] = {}
    for initializer in model.graph.initializer:
        if external_data_helper.uses_external_data(initializer):
            held = {entry.key: entry.value for entry in initializer.external_data}
            assert held["location"] == Path(WEIGHTS).name
            found[initializer.name] = (int(held["offset"]), int(held["length"]))
    return found


# What stands in a graph.


def test_graphs_say_nothing_of_the_machine_that_made_them(bundle: Bundle) -> None:
    secrets = (
        str(ROOT),
        str(Path.home()) + "/",
        str(bundle.root.parent),
        sys.prefix,
        "site-packages",
        ".py",
        "File ",
        "torch",
    )
    for name, model in models(bundle):
        content = graph_file(bundle, name).read_bytes()
        found = [secret for secret in secrets if secret.encode() in content]
        assert not found, name
        assert (model.producer_name, model.producer_version) == ("stc", "")
        graph = model.graph
        described = [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
        for part in described:
            assert not part.doc_string, name
            assert not part.metadata_props, name
        assert not graph.value_info, name


def test_graphs_are_of_the_portable_subset(bundle: Bundle) -> None:
    for name, model in models(bundle):
        assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)], name
        assert model.ir_version <= 10, name
        assert not model.functions, name
        assert {node.op_type for node in model.graph.node} <= PORTABLE_OPS, name
        assert not any(node.domain for node in model.graph.node), name
        onnx.checker.check_model(str(graph_file(bundle, name)), full_check=True)
    assert (OPSET, IR_VERSION) == (18, 10)
    assert bundle.manifest.provenance.opset == 18


def test_every_graph_has_the_ports_of_contract_and_manifest(bundle: Bundle) -> None:
    kinds = contracts_of(bundle)
    assert bundle.manifest.graphs.keys() == kinds.keys()
    for name, model in models(bundle):
        contract, entry, graph = kinds[name], bundle.manifest.graphs[name], model.graph
        assert model.graph.name == name
        for ports, entries, values in (
            (contract.inputs, entry.inputs, graph.input),
            (contract.outputs, entry.outputs, graph.output),
        ):
            assert [port.name for port in ports] == [port.name for port in entries]
            assert [port.name for port in ports] == [value.name for value in values]
            for port, listed, value in zip(ports, entries, values, strict=True):
                kind = value.type.tensor_type
                axes = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
                assert axes == listed.shape, (name, port.name)
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                assert dtype == ELEMENTS[listed.dtype], (name, port.name)
                sizes = sizes_of(bundle, name)
                expected = tuple(sizes.get(symbol, symbol) for symbol in port.shape)
                assert axes == expected, (name, port.name)


def sizes_of(bundle: Bundle, graph: str) -> dict[str, int]:
    """Sizes by symbol; P is that of the graph's scoring. M, k, m and S are free."""
    spec, language = bundle.manifest.vision, bundle.manifest.language
    memory = {
        prune_graph(scoring): memory_width(scoring, spec.language_width) for scoring in SCORINGS
    }
    sizes = {
        "1": 1,
        "3": 3,
        "Hpx": spec.image_height,
        "Wpx": spec.image_width,
        "T": (spec.image_height // spec.patch_size) ** 2,
        "C": spec.width,
        "H": spec.heads,
        "d": spec.width // spec.heads,
        "n": ((spec.image_height // spec.patch_size + 1) // 2) ** 2,
        "D": spec.language_width,
        "P": memory.get(graph, 0),
    }
    if language is not None:
        sizes |= {
            "Q": language.query_heads,
            "G": language.key_heads,
            "e": language.head_width,
            "V": language.vocabulary,
        }
    return sizes


def test_nothing_in_a_graph_is_left_unused(bundle: Bundle) -> None:
    for name, model in models(bundle):
        graph = model.graph
        read = {port for node in graph.node for port in node.input}
        stored = [initializer.name for initializer in graph.initializer]
        assert len(set(stored)) == len(stored)
        assert set(stored) <= read, name
        wanted = read | {output.name for output in graph.output}
        assert all(wanted.intersection(node.output) for node in graph.node), name


# Weights.


def test_every_parameter_is_stored_once_and_graphs_hold_none(bundle: Bundle) -> None:
    spec = bundle.manifest.vision
    size = (bundle.root / WEIGHTS).stat().st_size
    used: set[tuple[int, int]] = set()
    for _, model in vision_models(bundle):
        used |= set(spans(model).values())
        for initializer in model.graph.initializer:
            if not external_data_helper.uses_external_data(initializer):
                assert np.prod(initializer.dims, dtype=int) <= max(4, spec.tokens)
    ends = [0]
    for offset, length in sorted(used):
        assert offset >= ends[-1], "overlap"
        ends.append(offset + length)
    assert ends[-1] == size

    itemsize = {"fp32": 4, "fp16": 2}[bundle.manifest.provenance.precision]
    shapes = {**SIGLIP.shapes(spec), **projector_shapes(spec)}
    elements = sum(int(np.prod(shape)) for shape in shapes.values())
    norms = sum(int(np.prod(shape)) for name, shape in shapes.items() if "layer_norm" in name)
    pooling = spec.pooled * spec.tokens
    # Norms stay in float32.
    expected = (elements + pooling) * itemsize + norms * (4 - itemsize)
    assert sum(length for _, length in used) == expected


def test_the_weights_file_is_hardly_larger_than_the_parameters(demo_bundle: Path) -> None:
    spec = Bundle.open(demo_bundle).manifest.vision
    shapes = {**SIGLIP.shapes(spec), **projector_shapes(spec)}
    parameters_bytes = 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    # Each tensor begins at a page of its own.
    assert (demo_bundle / WEIGHTS).stat().st_size <= parameters_bytes + len(shapes) * ALIGNMENT


def test_a_graph_holds_the_tensors_of_its_block(exported: Exporting) -> None:
    one = exported(GOLDEN[0])
    weights = np.memmap(one.bundle.root / WEIGHTS, np.uint8, "r")
    for name, model in vision_models(one.bundle):
        kind, number = kind_of(name)
        block = f"encoder.layers.{number}"
        held = {"update": ("query", "self_attn.q_proj"), "mlp": ("norm2", "layer_norm2")}
        for ours, theirs in [held[kind]] if kind in held else []:
            offset, length = spans(model)[f"{ours}.weight"]
            stored = weights[offset : offset + length].view(np.float32)
            tensor = one.weights.vision(f"{block}.{theirs}.weight").numpy()
            np.testing.assert_array_equal(stored, tensor.T.reshape(-1))


def test_tracing_merges_no_parameters_of_equal_values(checkpoint_bundle: Exported) -> None:
    block = "encoder.layers.1"
    norms = [checkpoint_bundle.weights.vision(f"{block}.layer_norm{i}.weight") for i in (1, 2)]
    assert torch.equal(*norms), "transformers starts with norms of ones"
    model = onnx.load(
        graph_file(checkpoint_bundle.bundle, update_graph(1)), load_external_data=False
    )
    module = VisionModel(checkpoint_bundle.weights).module(update_graph(1))
    found = spans(model)
    assert found.keys() == {name for name, _ in module.named_parameters()}
    assert len(set(found.values())) == len(found)
    read = [node.input[1] for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert read == ["norm1.weight"]


# Alike every time.


def test_exports_of_one_checkpoint_are_equal_to_the_byte(
    checkpoints: tuple[Path, Path],
    checkpoint_bundle: Exported,
    kept_traces: TraceCache,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    output, traces, here = (tmp_path / name for name in ("again", "traces", "here"))
    here.mkdir()
    monkeypatch.setattr(trace_module, "_traced", TraceCache(here, kept_traces))
    export(checkpoint_bundle.weights, tmp_path / "bundle")
    made = digests(here)
    assert len(made) == 14
    # The other process traces the larger half anew, and finds the rest by what it is known by.
    shutil.copytree(here, traces)
    for large in sorted(traces.iterdir(), key=lambda file: file.stat().st_size)[4:]:
        large.unlink()
    done = run_python(
        *("-m", "tests.trace_cache", traces, "--model", "llava-ov"),
        *("--checkpoint", checkpoints[0], "--output", output),
        *("--budget", 2, "--vision-only"),
        PYTHONHASHSEED="1",
    )
    assert done.returncode == 0, done.stderr
    assert digests(output) == digests(checkpoint_bundle.bundle.root)
    assert digests(traces) == made


def digests(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in root.rglob("*")
        if file.is_file()
    }


# A graph that does not equal PyTorch.


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_large_values_may_differ_from_pytorch_by_their_own_rounding(
    checkpoint_bundle: Exported, offset: float
) -> None:
    name, spec = keys_graph(0), checkpoint_bundle.weights.spec
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(spec.tokens, spec.width, generator=random) + offset
    path, contract = graph_file(checkpoint_bundle.bundle, name), vision_graphs(1)[name]
    GraphCheck(path, contract, "fp32").compare(
        VisionModel(checkpoint_bundle.weights).module(name), (hidden,)
    )


def trace_with(kind: type[nn.Module], change: Callable[[Any], None]) -> Callable[..., Any]:
    """`trace`, but modules of `kind` are changed before."""

    def trace_changed(module: nn.Module, *others: Any) -> onnx.ModelProto:
        if isinstance(module, kind):
            module = copy.deepcopy(module)
            change(module)
        return trace(module, *others)

    return trace_changed


def coarse_norm(module: Keys) -> None:
    module.norm1.eps = 0.5


def flat_attention(module: Update) -> None:
    module.scale *= 0.5


def other_gelu(module: Mlp) -> None:
    module.activation = functional.gelu


DIFFERENT: list[tuple[type[nn.Module], Callable[[Any], None], str]] = [
    (Keys, coarse_norm, "keys_00: key"),
    (Update, flat_attention, "update_00: attention"),
    (Mlp, other_gelu, "mlp_00: residual"),
]


@pytest.mark.parametrize(("kind", "change", "output"), DIFFERENT)
def test_a_graph_that_differs_from_pytorch_fails_the_export(
    kind: type[nn.Module],
    change: Callable[[Any], None],
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(graphs, "trace", trace_with(kind, change))
    told = rf"^{output}: differs from torch by \d[\d.e-]+ at most and \d[\d.e-]+ relative L2"
    with pytest.raises(ExportError, match=told):
        export(golden_weights(GOLDEN[0]), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_parameters_in_each_others_place_fail_the_export_and_leave_the_bundle_before_it(
    exported: Exporting, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = tmp_path / "bundle"
    shutil.copytree(exported("half").bundle.root, before)
    expected = digests(tmp_path)

    def swapped(
        template: onnx.ModelProto, name: str, spans: dict[str, Span], location: str, **others: Any
    ) -> onnx.ModelProto:
        if name == "update_01":
            query, out = spans["query.weight"], spans["out.weight"]
            spans = {**spans, "query.weight": out, "out.weight": query}
        return bind(template, name, spans, location, **others)

    monkeypatch.setattr(graphs, "bind", swapped)
    with pytest.raises(ExportError, match=r"^update_01: attention: differs from torch"):
        export(golden_weights(GOLDEN[0]), before, force=True)
    assert digests(tmp_path) == expected


class TooLarge(RandomCheckpoint):
    """Finite weights whose products are none in float16."""

    def vision(self, name: str) -> Tensor:
        return super().vision(name) * (1e4 if "mlp.fc" in name else 1.0)


def test_a_tower_that_overflows_half_precision_fails_the_export(tmp_path: Path) -> None:
    weights = TooLarge("too large", CASES["half"]().spec, 0, {})
    with pytest.raises(ExportError, match=r"^mlp_00: residual: NaN .*--precision fp32$"):
        export(weights, tmp_path / "bundle", "fp16")
    assert list(tmp_path.iterdir()) == []
