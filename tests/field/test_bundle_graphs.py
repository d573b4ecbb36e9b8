"""Graphs that stc did not write never reach a runtime, however well the bundle is signed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stc.bundle import Bundle
from stc.errors import StcError
from stc.graph_check import GraphRefusedError, check_graph
from stc.onnx_file import OnnxFileError, read_onnx
from stc.operators import OPERATORS, GraphKind
from tests.field.resigned import resign

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto
GRAPH = "embed"


def int64(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def subgraph(*nodes: Any) -> Any:
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    return helper.make_graph(list(nodes), "body", [], [flag])


def endless(model: Any) -> None:
    """A loop without a last step."""
    body = subgraph(helper.make_node("Identity", ["always"], ["go"]))
    model.graph.node.append(helper.make_node("Loop", ["", "always"], [], body=body))


def branch(model: Any) -> None:
    """An If whose branches do nothing."""
    empty = subgraph()
    node = helper.make_node("If", ["always"], ["x"], then_branch=empty, else_branch=empty)
    model.graph.node.append(node)


def hidden_loop(model: Any) -> None:
    """A subgraph as an attribute that an operator of the list does not have."""
    node = helper.make_node("Add", ["a", "b"], ["x"], body=subgraph())
    model.graph.node.append(node)


def eight_gigabytes(model: Any) -> None:
    """A constant that takes 8 GB and a few bytes of file."""
    model.graph.initializer.append(int64("shape", 2_000_000_000))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["x"]))


def eight_gigabytes_of_numbers(model: Any) -> None:
    """The numbers up to 10^9."""
    model.graph.node.append(helper.make_node("Range", ["first", "limit", "step"], ["x"]))


def declared_only(model: Any) -> None:
    """An initialiser that says it has 8 GB and has four bytes."""
    huge = TensorProto(name="huge", data_type=1, dims=[2_000_000_000], raw_data=b"1234")
    model.graph.initializer.append(huge)


def negative(model: Any) -> None:
    """Two negative axes make a positive size."""
    tensor = TensorProto(name="odd", data_type=1, dims=[-1, -1], raw_data=b"1234")
    model.graph.initializer.append(tensor)


def constant_outside(model: Any) -> None:
    """A tensor as an attribute, its values in a file of the machine."""
    value = TensorProto(name="c", data_type=1, dims=[1], data_location=1)
    value.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=value))


def of_another_domain(model: Any) -> None:
    """An operator of ONNX Runtime's own where the portable list stands."""
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node.append(helper.make_node("Gelu", ["a"], ["x"], domain="com.microsoft"))


def known_name_of_another_domain(model: Any) -> None:
    """A portable name, in a domain in which it may be anything."""
    model.graph.node.append(helper.make_node("Add", ["a", "b"], ["x"], domain="my.own"))


def function(model: Any) -> None:
    """A portable name that the model defines anew."""
    body = helper.make_function(
        "", "Add", ["a", "b"], ["x"], [helper.make_node("Mul", ["a", "b"], ["x"])], []
    )
    model.functions.append(body)


def sparse(model: Any) -> None:
    """A sparse tensor: many zeros that nobody stored."""
    values = TensorProto(name="s", data_type=1, dims=[1], raw_data=b"1234")
    tensor = onnx.SparseTensorProto(values=values, dims=[10**12])
    model.graph.sparse_initializer.append(tensor)


def many_nodes(model: Any) -> None:
    """Ten thousand operators of the list."""
    model.graph.node.extend(
        helper.make_node("Concat", [f"{n}", f"{n}"], [f"{n + 1}"]) for n in range(10_000)
    )


def text(model: Any) -> None:
    """A tensor of texts."""
    tensor = TensorProto(name="t", data_type=8, dims=[1], string_data=[b"text"])
    model.graph.initializer.append(tensor)


def many_axes(model: Any) -> None:
    """A product of axes that takes for ever."""
    dims = [2**62] * 100_000
    model.graph.initializer.append(TensorProto(name="t", data_type=1, dims=dims, raw_data=b""))


STRANGE: list[Callable[[Any], None]] = [
    endless,
    branch,
    hidden_loop,
    eight_gigabytes,
    eight_gigabytes_of_numbers,
    declared_only,
    negative,
    constant_outside,
    of_another_domain,
    known_name_of_another_domain,
    function,
    sparse,
    many_nodes,
    text,
    many_axes,
]


@pytest.mark.parametrize("change", STRANGE, ids=lambda change: change.__name__)
def test_a_graph_with_more_than_stc_writes_is_refused(
    demo_bundle: Path,
    tmp_path: Path,
    change: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A re-signed graph with a loop, a giant or a stranger in it: one line, nothing loaded."""
    import onnxruntime

    from stc.engines.onnxruntime_backend import OnnxRuntimeBackend

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    file = bundle / "graphs" / f"{GRAPH}.onnx"
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    resign(bundle)
    backend = OnnxRuntimeBackend(Bundle.open(bundle))
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    with pytest.raises(StcError) as caught:
        backend.load(GRAPH)
    line = str(caught.value)
    assert line.startswith((f"{file}: has ", f"{file}: tensor "))
    assert "export again with: stc-export" in line
    assert len(line) < 600


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"ORTM" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"{}", bytes(range(256))]
)
def test_a_graph_that_is_no_onnx_is_refused_before_a_runtime_sees_it(
    demo_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    """Another format under the graph's name, ONNX Runtime's own among them."""
    from stc.engines.onnxruntime_backend import OnnxRuntimeBackend

    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    (bundle / "graphs" / f"{GRAPH}.onnx").write_bytes(content)
    resign(bundle)
    with pytest.raises(StcError, match=r"embed\.onnx: is not an ONNX graph"):
        OnnxRuntimeBackend(Bundle.open(bundle)).load(GRAPH)


@pytest.mark.parametrize("kind", ["graphs", "fused_graphs", "int4_graphs"])
def test_every_graph_that_is_exported_may_be_loaded(demo_bundle: Path, kind: GraphKind) -> None:
    """The list that refuses is the list that exports: no graph of ours is refused."""
    bundle = Bundle.open(demo_bundle)
    for name in getattr(bundle.manifest, kind):
        assert bundle.graph(name, kind).content


def test_four_bit_graphs_may_be_loaded_and_only_as_such() -> None:
    """MatMulNBits is let in where the manifest says four bits, and nowhere else."""
    from tests.language_cases import language_case

    bundle = language_case(int4=32).bundle
    sizes = {Path(path).name: size for path, size in bundle.files.sizes.items()}
    for name in bundle.manifest.int4_graphs:
        graph = bundle.graph(name, "int4_graphs")
        with pytest.raises(GraphRefusedError, match="MatMulNBits"):
            check_graph(graph.content, "graphs", sizes)


def test_no_list_has_an_operator_with_a_body_or_a_size_of_its_own() -> None:
    """Loops, subgraphs and operators that make tensors of a told size are on none of the lists."""
    told = {"Loop", "If", "Scan", "SequenceMap", "ConstantOfShape", "Range", "Expand", "Tile"}
    for operators in OPERATORS.values():
        assert not told & {name for _, name in operators}


NAMES = st.sampled_from(["Add", "Mul", "Loop", "Odd", ""])
DOMAINS = st.sampled_from(["", "com.microsoft", "my.own"])


@st.composite
def models(draw: st.DrawFn) -> Any:
    """An ONNX model: nodes, tensors inside and outside, subgraphs, functions."""

    def tensor(name: str) -> Any:
        dims = draw(st.lists(st.integers(-2, 2**62), max_size=3))
        made = TensorProto(name=name, data_type=draw(st.integers(0, 22)), dims=dims)
        if draw(st.booleans()):
            made.data_location = TensorProto.EXTERNAL
            for key in draw(st.sets(st.sampled_from(["location", "offset", "length"]))):
                made.external_data.add(key=key, value=draw(st.text(max_size=5)))
        else:
            made.raw_data = draw(st.binary(max_size=8))
            made.float_data.extend(draw(st.lists(st.just(1.5), max_size=2)))
            made.int64_data.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)))
        return made

    def graph(depth: int) -> Any:
        nodes = []
        for _ in range(draw(st.integers(0, 3))):
            node = helper.make_node(draw(NAMES), ["a"], ["b"], domain=draw(DOMAINS), alpha=1.5)
            if depth and draw(st.booleans()):
                node.attribute.append(helper.make_attribute("body", graph(depth - 1)))
            nodes.append(node)
        tensors = [tensor(f"t{number}") for number in range(draw(st.integers(0, 2)))]
        return helper.make_graph(nodes, "g", [], [], tensors)

    model = helper.make_model(graph(2))
    if draw(st.booleans()):
        node = helper.make_node(draw(NAMES), ["a"], ["b"], domain=draw(DOMAINS))
        model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], []))
    return model


def seen_by_onnx(model: Any) -> tuple[set[tuple[str, str]], int, list[Any]]:
    """Operators, nodes and tensors, as `onnx` reads them."""
    graphs, nodes, tensors = [model.graph], [], []
    while graphs:
        graph = graphs.pop()
        nodes += graph.node
        tensors += graph.initializer
        graphs += [one.g for node in graph.node for one in node.attribute if one.HasField("g")]
    nodes += [node for one in model.functions for node in one.node]
    return {(node.domain, node.op_type) for node in nodes}, len(nodes), tensors


@given(models())
@settings(max_examples=60, deadline=None)
def test_what_is_read_of_a_model_is_what_onnx_reads(model: Any) -> None:
    """The reader of the wire format and the library agree on every model there is."""
    operators, nodes, tensors = seen_by_onnx(model)
    found = read_onnx(model.SerializeToString())
    assert (found.operators, found.nodes) == (operators, nodes)
    assert bool(model.functions) == ("functions" in found.unusual)
    expected = sorted(
        (one.name, one.data_type, tuple(one.dims), one.data_location) for one in tensors
    )
    assert expected == sorted(
        (one.name, one.data_type, one.shape, int(one.external is not None)) for one in found.tensors
    )
    external = [{pair.key: pair.value for pair in one.external_data} for one in tensors]
    assert sorted(map(str, filter(None, external))) == sorted(
        str(one.external) for one in found.tensors if one.external
    )


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Whatever the bytes: facts, or the one error. Each byte is looked at a few times at most."""
    model = helper.make_model(helper.make_graph([], "g", [], [], [int64("t", 1, 2)]))
    endless(model)
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    _read(bytes(content))


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """Noise in place of a graph."""
    _read(content)


def test_graphs_nested_without_end_are_refused() -> None:
    """A graph in a node in a graph, a thousand deep: an error, no overflowing stack."""
    graph = b""
    for _ in range(1000):
        attribute = _field(6, graph)
        graph = _field(1, _field(5, attribute))
    with pytest.raises(OnnxFileError, match="nested"):
        read_onnx(_field(7, graph))


def test_fields_that_two_readers_could_take_apart_are_refused() -> None:
    """A second op_type, or one of another wire type, is read by nobody in two ways."""
    node = _field(4, b"Add")
    for doubtful in (node + _field(4, b"Loop"), node + bytes([4 << 3, 1])):
        with pytest.raises(OnnxFileError):
            read_onnx(_field(7, _field(1, doubtful)))


def _field(number: int, content: bytes) -> bytes:
    size, coded = len(content), b""
    while size >= 0x80:
        coded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + coded + bytes([size]) + content


def _read(content: bytes) -> None:
    try:
        found = read_onnx(content)
    except OnnxFileError as error:
        assert "\n" not in str(error)
    else:
        assert found.nodes <= len(content)
