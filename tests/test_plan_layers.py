"""Graphs through the real compiler: what its list says agrees with what is known otherwise."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="pip install 'stc[tensorrt-rtx]'")
pytest.importorskip("polygraphy", reason="pip install 'stc[tensorrt-rtx]'")

import onnx
from onnx import TensorProto, helper, numpy_helper

from stc.engines.build import listing
from stc.engines.build.builders import BuildProgress
from stc.engines.build.compile import Recipe
from stc.engines.build.layers import EngineLayers, list_layers
from stc.engines.build.listing import engine_call, engines_to_list, find_compiler, list_engines
from stc.engines.gpu.cuda import DeviceFacts
from stc.engines.library.library import LADDER, Attention
from stc.engines.library.plan import EngineSpec, choose_buckets, plan_engines
from stc.engines.library.targets import TARGETS, TensorRt, load_tensorrt
from stc.errors import EngineError
from stc.manifest import FileEntry, GraphEntry, PortEntry
from stc.method.family import VISION, macs, stream_programs
from stc.onnx_files.onnx_file import read_onnx, structure_digest
from stc.settings import Settings
from stc.shell.command import Console
from tests.vision_cases import Exported

HEADS, TOKENS, WIDTH = 2, 64, 32


def silent(line: str) -> None:
    pytest.fail(line)


SETTINGS = Settings(reference_interval=2, recompute_ratio=0.25, budget=2)


def quiet() -> BuildProgress:
    return BuildProgress(0, Console(file=io.StringIO()))


def attention(path: Path) -> GraphEntry:
    """Attention in float16 stands at `path`, on [1, H, T, d]."""
    shape = [1, HEADS, TOKENS, WIDTH]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in "qkv"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)
    scale = numpy_helper.from_array(np.array(WIDTH**-0.5, np.float16), "scale")
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"], "scaling"),
        helper.make_node("Transpose", ["k"], ["turned"], "turning", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["scaled", "turned"], ["scores"], "scoring"),
        helper.make_node("Cast", ["scores"], ["wide"], "widening", to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["wide"], ["soft"], "softmax", axis=-1),
        helper.make_node("Cast", ["soft"], ["narrow"], "narrowing", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["narrow", "v"], ["y"], "summing"),
    ]
    graph = helper.make_graph(nodes, "attention", ports, [output], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path))
    entry = [PortEntry(name=name, shape=tuple(shape), dtype="float16") for name in "qkvy"]
    file = FileEntry(path="graphs/x.onnx", sha256="0" * 64, size_bytes=1)
    return GraphEntry(file=file, inputs=tuple(entry[:3]), outputs=(entry[3],))


def listed(tmp_path: Path, way: Attention = LADDER[0]) -> EngineLayers:
    path = tmp_path / "attention.onnx"
    recipe = Recipe(
        spec=EngineSpec("attention", ({},)),
        path=path,
        graph=attention(path),
        targets=(TARGETS["sm86"],),
        detailed=True,
        attention=way,
    )
    return list_layers(load_tensorrt("tensorrt-rtx"), recipe, lambda *_: None)


def test_attention_of_rank_four_is_one_kernel_and_its_operations_are_counted(
    tmp_path: Path,
) -> None:
    found = listed(tmp_path)
    assert (found.attentions, found.fused) == (1, 1)
    assert sum(kernel.macs for kernel in found.kernels) == 2 * HEADS * TOKENS**2 * WIDTH
    tensor = HEADS * TOKENS * WIDTH * 2
    # Queries, keys, values and result at the least; no score in memory.
    assert sum(kernel.bytes for kernel in found.kernels) >= 4 * tensor


def test_unfused_attention_is_told_and_moves_its_scores(tmp_path: Path) -> None:
    """Widened products, which no kernel of attention takes: what stc-build falls back to."""
    found, fused = listed(tmp_path, "float32"), listed(tmp_path)
    assert (found.attentions, found.fused) == (1, 0)
    scores = HEADS * TOKENS**2 * 4
    least = sum(kernel.bytes for kernel in fused.kernels) + 2 * scores
    assert sum(kernel.bytes for kernel in found.kernels) > least
    assert {kernel.item_bytes for kernel in found.kernels if kernel.macs} == {4}


def test_operations_of_a_frame_are_those_the_method_counts_and_blocks_compile_once(
    exported: Callable[[str], Exported],
) -> None:
    bundle = exported("half").bundle
    manifest = bundle.manifest
    buckets = choose_buckets(manifest, (SETTINGS.recompute_ratio,), (SETTINGS.budget,))
    specs = plan_engines(manifest, buckets, several_profiles=True)
    programs = stream_programs(manifest.vision, "fp16", SETTINGS)
    tower = {
        program.name: [
            engine_call(call.graph, call.sizes) for call in program.calls if call.stage == VISION
        ]
        for program in programs
    }
    calls = [call for some in tower.values() for call in some]
    # embed, reference, keys, compare, select, place, update, mlp at both sizes, add and merge,
    # whatever the number of blocks.
    assert manifest.vision.blocks > 1
    compiler = find_compiler(TARGETS["sm89"], None, None, "no GPU", silent)
    assert engines_to_list(bundle, calls, specs, [compiler]) == 11
    two = find_compiler(TARGETS["sm120"], None, None, "no GPU", silent)
    assert engines_to_list(bundle, calls, specs, [compiler, two, two]) == 22
    layers = list_engines(bundle, calls, specs, [compiler], quiet())["sm89"]
    for program in programs:
        kernels = [one for call in tower[program.name] for one in layers[call].kernels]
        assert sum(kernel.macs for kernel in kernels) == macs(manifest.vision, program)
        assert all(kernel.weight_bytes <= kernel.bytes for kernel in kernels)
    stored = sum(
        int(tensor.external["length"])
        for graph, _ in tower["reference"]
        for tensor in read_onnx(bundle.read(manifest.graphs[graph].file.path)).tensors
        if tensor.external is not None
    )
    read = sum(one.weight_bytes for call in tower["reference"] for one in layers[call].kernels)
    # Norms are widened to float32, and every product has two factors of its own.
    assert stored <= read < 1.2 * stored


def test_structure_is_what_blocks_share_and_nothing_else(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    bundle = exported("half").bundle

    def of(graph: str) -> str:
        return structure_digest(bundle.read(bundle.manifest.graphs[graph].file.path))

    assert of("update_00") == of("update_01") != of("keys_00")
    path = tmp_path / "attention.onnx"
    attention(path)
    digests = {structure_digest(path.read_bytes())}
    model = onnx.load(str(path))
    model.graph.doc_string = "a note"
    assert structure_digest(model.SerializeToString()) in digests
    # An attribute, a value held by the file itself, a size.
    model.graph.node[4].attribute[0].i = 1
    digests.add(structure_digest(model.SerializeToString()))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(2, np.float16), "scale"))
    digests.add(structure_digest(model.SerializeToString()))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    digests.add(structure_digest(model.SerializeToString()))
    assert len(digests) == 4


def test_orin_is_listed_as_its_stand_in_where_native_tensorrt_is_absent() -> None:
    compiler = find_compiler(TARGETS["orin-nano"], None, None, "no GPU", silent)
    assert (compiler.tensorrt.flavour, compiler.compiled.name) == ("tensorrt-rtx", "sm86")
    assert compiler.told.endswith("sm86 in place of orin-nano")
    own = find_compiler(TARGETS["sm89"], None, None, "no GPU", silent)
    assert own.compiled is TARGETS["sm89"]
    assert own.told.endswith(", sm89")


def test_native_tensorrt_is_refused_where_it_cannot_compile() -> None:
    with pytest.raises(EngineError):
        find_compiler(TARGETS["orin-nano"], "tensorrt", None, "no GPU", silent)


def test_native_tensorrt_lists_the_board_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    native = TensorRt("tensorrt", type("Module", (), {"__version__": "10.3.0"}))
    monkeypatch.setattr(listing, "load_tensorrt", lambda flavour: native)
    nano = DeviceFacts("Orin", (8, 7), 1, 1, True, "NVIDIA Jetson Orin Nano Developer Kit")
    compiler = find_compiler(TARGETS["orin-nano"], None, nano, "", silent)
    assert (compiler.tensorrt, compiler.compiled.name) == (native, "orin-nano")


@pytest.mark.parametrize("with_rtx", [True, False])
def test_why_native_tensorrt_is_not_taken_on_its_own_board_is_told(
    with_rtx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(flavour: str) -> TensorRt:
        if flavour == "tensorrt":
            raise EngineError("tensorrt", "libnvinfer.so.10 is missing", "", "install JetPack's")
        if not with_rtx:
            raise EngineError("tensorrt-rtx", "is not installed", "", "pip install it")
        return TensorRt("tensorrt-rtx", type("Module", (), {"__version__": "1.7"}))

    monkeypatch.setattr(listing, "load_tensorrt", load)
    nano = DeviceFacts("Orin", (8, 7), 1, 1, True, "NVIDIA Jetson Orin Nano Developer Kit")
    said: list[str] = []
    if with_rtx:
        found = find_compiler(TARGETS["orin-nano"], None, nano, "", said.append)
        assert found.compiled.name == "sm86"
        [line] = said
        assert line.startswith("orin-nano: native TensorRT is not asked, TensorRT-RTX is (tensorrt")
        assert "libnvinfer.so.10 is missing" in line
    else:
        with pytest.raises(EngineError, match=r"libnvinfer.*tensorrt-rtx: is not installed"):
            find_compiler(TARGETS["orin-nano"], None, nano, "", said.append)


def test_a_run_that_no_engine_is_planned_for_is_refused() -> None:
    with pytest.raises(EngineError, match=r"update_00: no engine is planned for \{'M': 3\}"):
        listing.spec_of(engine_call("update_00", {"M": 3}), [EngineSpec("update_00", ({"M": 4},))])


def test_a_graph_that_cannot_be_compiled_is_one_line(
    exported: Callable[[str], Exported],
) -> None:
    bundle = exported("half").bundle
    spec = EngineSpec("select", ({"M": 10**6},), 10**6)
    call = engine_call("select", {"M": 10**6})
    compiler = find_compiler(TARGETS["sm86"], None, None, "", silent)
    with pytest.raises(EngineError, match=r"^select-M1000000, sm86: "):
        list_engines(bundle, [call], [spec], [compiler], quiet())
