"""Graphs that stc did not write never reach a runtime, however well the bundle is signed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.files import BundleFiles
from stc.errors import BundleError, StcError
from stc.onnx_files.graph_check import MAX_GRAPH_BYTES
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


def much_of_little(model: Any) -> None:
    """Five Concats that make 2 GB of one stored tensor while the graph is loaded."""
    model.graph.initializer.append(int64("c0", *range(256)))
    model.graph.node.extend(
        helper.make_node("Concat", [f"c{n}"] * 16, [f"c{n + 1}"], axis=0) for n in range(5)
    )


def much_of_little_last_first(model: Any) -> None:
    """The same, its nodes in no order that they could run in."""
    much_of_little(model)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def of_nothing(model: Any) -> None:
    """A node without inputs."""
    model.graph.node.append(helper.make_node("Concat", [], ["x"], axis=0))


def given_twice(model: Any) -> None:
    """A node that gives what is stored already: which one is read is the runtime's choice."""
    stored = model.graph.initializer[0].name
    model.graph.node.append(helper.make_node("Neg", [model.graph.input[0].name], [stored]))


def stored_twice(model: Any) -> None:
    """Two tensors of one name."""
    model.graph.initializer.extend([int64("t", 1), int64("t", 1, 2)])


def attribute_twice(model: Any) -> None:
    """An attribute with two values."""
    node = helper.make_node("Concat", [model.graph.input[0].name], ["x"], axis=0)
    node.attribute.append(helper.make_attribute("axis", 1))
    model.graph.node.append(node)


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
    much_of_little,
    much_of_little_last_first,
    of_nothing,
    given_twice,
    stored_twice,
    attribute_twice,
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
    assert line.startswith(tuple(f"{file}: {word} " for word in ("has", "tensor", "is not")))
    assert "export again with: stc-export" in line
    assert len(line) < 600


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"ORTM" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"{}", bytes(range(256))],
    ids=["empty", "zero", "ORTM", "cut", "JSON", "noise"],
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


def test_a_graph_of_gigabytes_is_refused_unread(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file of gigabytes under a graph's name: its size is enough to refuse it."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    os.truncate(bundle / "graphs" / f"{GRAPH}.onnx", MAX_GRAPH_BYTES + 1)
    resign(bundle)
    opened = Bundle.open(bundle)
    monkeypatch.delattr(BundleFiles, "read")
    with pytest.raises(BundleError, match=r"embed\.onnx: has 262,145 bytes, expected at most"):
        opened.graph(GRAPH)


def test_a_companion_of_gigabytes_is_refused_unread(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root file longer than any tokenizer: one line, nothing read."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    longest = bundle / "config.json"
    monkeypatch.setattr("stc.bundles.bundle.MAX_COMPANION_BYTES", longest.stat().st_size - 1)
    opened = Bundle.open(bundle)
    monkeypatch.delattr(BundleFiles, "read")
    with pytest.raises(
        BundleError, match=r": has [\d,]+ bytes, expected at most [\d,]+; "
    ) as caught:
        opened.companions()
    assert "\n" not in str(caught.value)
