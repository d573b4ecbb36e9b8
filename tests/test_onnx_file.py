"""What an ONNX file holds is read without `onnx`; a graph of another kind is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stc.bundles.bundle import Bundle
from stc.onnx_files.graph_check import GraphRefusedError, check_graph
from stc.onnx_files.onnx_file import OnnxFileError, read_onnx
from stc.onnx_files.operators import EXTENDED, PORTABLE

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto
Change = Callable[[Any, Any], None]


@pytest.mark.parametrize("backend", ["", "onnxruntime-cpu"])
def test_every_graph_that_is_exported_may_be_loaded(demo_bundle: Path, backend: str) -> None:
    """The list that refuses is the list that exports: no graph of ours is refused."""
    bundle = Bundle.open(demo_bundle)
    for name in bundle.manifest.graphs:
        assert bundle.graph(name, backend).content


def test_four_bit_graphs_may_be_loaded_and_only_as_such() -> None:
    """MatMulNBits is let in where the manifest says four bits, and nowhere else."""
    from tests.language_cases import language_case

    bundle = language_case(int4=32).bundle
    sizes = {Path(path).name: size for path, size in bundle.files.sizes.items()}
    for name in bundle.manifest.variants["int4"].graphs:
        graph = bundle.graph(name, "onnxruntime-cpu", "int4")
        for own in (False, True):
            with pytest.raises(GraphRefusedError, match="MatMulNBits"):
                check_graph(graph.content, sizes, own=own)


def _attribute(**values: Any) -> Change:
    """The node has these attributes as well, or in place of its own."""

    def change(node: Any, _: Any) -> None:
        kept = [one for one in node.attribute if one.name not in values]
        del node.attribute[:]
        new = [helper.make_attribute(key, value) for key, value in values.items()]
        node.attribute.extend([*kept, *new])

    return change


def _dims(place: int, axis: int, size: int) -> Change:
    """The node's stored input at `place` says another size."""

    def change(node: Any, model: Any) -> None:
        (tensor,) = (one for one in model.graph.initializer if one.name == node.input[place])
        tensor.dims[axis] = size
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT

    return change


def _input(place: int, name: str) -> Change:
    """Another input."""

    def change(node: Any, _: Any) -> None:
        inputs = [*node.input, ""][: max(place + 1, len(node.input))]
        inputs[place] = name
        del node.input[:]
        node.input.extend(inputs)

    return change


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("MatMulNBits", _attribute(N=100_000)),
        ("MatMulNBits", _attribute(K=4096)),
        ("MatMulNBits", _attribute(N=0)),
        ("MatMulNBits", _attribute(K=-32)),
        ("MatMulNBits", _attribute(N=-1)),
        ("MatMulNBits", _attribute(N=32.0)),
        ("MatMulNBits", _attribute(bits=8)),
        ("MatMulNBits", _attribute(bits=2)),
        ("MatMulNBits", _attribute(block_size=16)),
        ("MatMulNBits", _attribute(block_size=0)),
        ("MatMulNBits", _attribute(accuracy_level=0)),
        ("MatMulNBits", _attribute(more=1)),
        ("MatMulNBits", _dims(1, 0, 1)),
        ("MatMulNBits", _dims(1, 2, 1)),
        ("MatMulNBits", _dims(2, 0, 1)),
        ("MatMulNBits", _input(1, "computed")),
        ("MatMulNBits", _input(3, "query.weight.codes")),
        ("RotaryEmbedding", _attribute(num_heads=1_000_000)),
        ("RotaryEmbedding", _attribute(interleaved=1)),
        ("RotaryEmbedding", _attribute(rotary_embedding_dim=4)),
        ("RotaryEmbedding", _dims(2, 0, 1)),
        ("RotaryEmbedding", _dims(3, 1, 1)),
        ("RotaryEmbedding", _input(2, "computed")),
        ("RotaryEmbedding", _input(4, "more")),
    ],
)
def test_operators_of_the_runtimes_own_have_the_sizes_of_an_export(
    operator: str, change: Change
) -> None:
    """ONNX Runtime reads past tensors that are smaller than their operator says."""
    name = {"MatMulNBits": "qkv_00", "RotaryEmbedding": "attend_00"}[operator]
    sizes, content = _four_bit_graph(name)
    check_graph(content, sizes, own=True, group=32)
    model = onnx.load_from_string(content)
    node = next(one for one in model.graph.node if one.op_type == operator)
    change(node, model)
    with pytest.raises(GraphRefusedError, match=f"has a {operator} "):
        check_graph(model.SerializeToString(), sizes, own=True, group=32)


def test_four_bit_groups_and_rotation_tables_are_those_of_the_manifest() -> None:
    """Groups of another size, or tables too short for the model's positions."""
    sizes, content = _four_bit_graph("attend_00")
    for wrong in ({"group": None}, {"group": 128}, {"group": 32, "positions": 10**6}):
        with pytest.raises(GraphRefusedError, match="has a "):
            check_graph(content, sizes, own=True, **wrong)


def _four_bit_graph(name: str) -> tuple[dict[str, int], bytes]:
    """Sizes of the files beside a four-bit graph, and its bytes."""
    from tests.language_cases import language_case

    bundle = language_case(int4=32).bundle
    sizes = {Path(path).name: size for path, size in bundle.files.sizes.items()}
    return sizes, bundle.graph(name, "onnxruntime-cpu", "int4").content


def test_no_list_has_an_operator_with_a_body_or_a_size_of_its_own() -> None:
    """Loops, subgraphs and operators that make tensors of a told size are on none of the lists."""
    told = {"Loop", "If", "Scan", "SequenceMap", "ConstantOfShape", "Range", "Expand", "Tile"}
    for operators in (PORTABLE, EXTENDED):
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

    model = helper.make_model(graph(draw(st.integers(0, 1))))
    if draw(st.booleans()):
        node = helper.make_node(draw(NAMES), ["a"], ["b"], domain=draw(DOMAINS))
        model.functions.append(helper.make_function("f", "F", ["a"], ["b"], [node], []))
    return model


@given(models())
@settings(max_examples=50, deadline=None)
def test_what_is_read_of_a_model_is_what_onnx_reads(model: Any) -> None:
    """The reader of the wire format and the library agree on every model of one level."""
    content, graph = model.SerializeToString(), model.graph
    bodies = any(one.HasField("g") for node in graph.node for one in node.attribute)
    if model.functions or bodies:
        with pytest.raises(OnnxFileError, match=r"^it has (subgraphs|functions)$"):
            read_onnx(content)
        return
    found = read_onnx(content)
    operators = [(node.domain, node.op_type) for node in graph.node]
    assert [node.operator for node in found.nodes] == operators
    assert [
        (one.name, one.data_type, one.shape, int(one.external is not None)) for one in found.tensors
    ] == [
        (one.name, one.data_type, tuple(one.dims), one.data_location) for one in graph.initializer
    ]
    external = [{pair.key: pair.value for pair in one.external_data} for one in graph.initializer]
    assert [one.external or {} for one in found.tensors] == external


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Whatever the bytes: facts, or the one error. Each byte is looked at a few times at most."""
    node = helper.make_node("Concat", ["a", "b"], ["c"], axis=1)
    tensor = helper.make_tensor("t", TensorProto.INT64, [2], [1, 2])
    model = helper.make_model(helper.make_graph([node], "g", [], [], [tensor]))
    content = bytearray(model.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    _read(bytes(content))


@given(st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """Noise in place of a graph."""
    _read(content)


def test_fields_that_two_readers_could_take_apart_are_refused() -> None:
    """A second op_type, or one of another wire type, is read by nobody in two ways."""
    node = _field(4, b"Add")
    for doubtful in (node + _field(4, b"Loop"), node + bytes([4 << 3, 1])):
        with pytest.raises(OnnxFileError):
            read_onnx(_field(7, _field(1, doubtful)))


LEVELS = {
    "model": [],
    "graph": [7],
    "node": [7, 1],
    "attribute": [7, 1, 5],
    "tensor": [7, 5],
    "place": [7, 5, 13],
}
"""The fields that lead to a message of each kind."""
WIDE_KEYS = [
    b"\xba\x80\x80\x80\x10",  # field 7 to whoever keeps 32 bits of it
    b"\x8a\x80\x80\x80\x10",  # field 1
    b"\xb2\x80\x80\x80\x20",  # field 6
    b"\xba\x80\x80\x80\x80\x80\x80\x80\x80\x01",
]


@pytest.mark.parametrize(
    ("doubtful", "said"),
    [
        *((key + b"\0", "more than 32 bits") for key in WIDE_KEYS),
        (b"\xba\x00\x00", "too many bytes"),  # key 0x3a in two
        (b"\xba\x80\x80\x80\x00\x00", "too many bytes"),
        (b"\xba\x80\x80\x80\x80\x80\x80\x80\x80\x02\x00", "too many bytes"),  # 65 bits
        (b"\xfa\x06\x80\x00", "too many bytes"),  # unknown field of size 0 in two
        (b"\xf8\x06\x81\x00", "too many bytes"),  # unknown field of value 1 in two
        (b"\xfb\x06\xfc\x06", "wire type 3"),  # a group
        (b"\x3c", "wire type 4"),  # the end of none
        (b"\x02\x00", "no number"),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("level", LEVELS)
def test_keys_that_others_read_as_another_field_are_refused(
    level: str, doubtful: bytes, said: str
) -> None:
    """protobuf in C++ keeps 32 bits of a key: what is unknown here would be a graph there."""
    message = doubtful
    for number in reversed(LEVELS[level]):
        message = _field(number, message)
    with pytest.raises(OnnxFileError, match=said):
        read_onnx(message)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ((20,), "training steps"),
        ((25,), "functions"),
        ((7, 15), "sparse tensors"),
        *((((7, 1, 5, number)), "tensors as attributes") for number in (5, 10)),
        *((((7, 1, 5, number)), "subgraphs") for number in (6, 11)),
        *((((7, 1, 5, number)), "sparse tensors") for number in (22, 23)),
    ],
)
def test_what_no_graph_of_one_level_has_is_refused_unread(path: tuple[int, ...], said: str) -> None:
    """Bodies, functions and tensors in strange places, be they whole, cut or of another type."""
    for inner in (b"", b"\xff"):
        message = inner
        for number in reversed(path):
            message = _field(number, message)
        with pytest.raises(OnnxFileError, match=f"^it has {said}$"):
            read_onnx(_field(7, b"") + message if path[0] != 7 else message)


def test_a_graph_that_others_merge_into_the_first_is_refused() -> None:
    """Fields that come once are merged by protobuf where they come twice."""
    tensor = _field(5, _field(13, _field(1, b"location") + _field(2, b"/etc/hostname")))
    for second in (_field(7, tensor), b"\xba\x80\x80\x80\x10" + _field(7, tensor)[1:]):
        with pytest.raises(OnnxFileError):
            read_onnx(_field(7, b"") + second)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    coded = b""
    while value >= 0x80:
        coded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return coded + bytes([value])


def _read(content: bytes) -> None:
    try:
        found = read_onnx(content)
    except OnnxFileError as error:
        assert "\n" not in str(error)
    else:
        assert len(found.nodes) <= len(content)
