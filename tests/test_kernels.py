"""The compiler's list of layers, as TensorRT-RTX and native TensorRT print it, becomes kernels."""

from __future__ import annotations

import pytest

from stc.engines.build.kernels import Kernel, LayerListError, message_of, read_kernels, with_macs
from stc.engines.build.layers import _is_fused


def tensor(name: str, shape: str, dtype: str = "Half", strides: str = "") -> str:
    """As TensorRT-RTX 1.7 prints one."""
    strides = f"Strides: [{strides or '1' + ',1' * shape.count(',')}], StrideOrder: [0], "
    return (
        f"{{ Name: {name}, Dimensions: [{shape}], {strides}Datatype: {dtype}, "
        "Format: (Linear) Row major linear format }"
    )


def layer(
    name: str,
    inputs: list[str],
    outputs: list[str],
    constants: list[str] | None = None,
    *,
    kind: str = "kgen",
    nodes: str = "",
) -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {', '.join(inputs)}], "
        f"Constants: [ {', '.join(constants or [])}], Outputs: [ {', '.join(outputs)}], "
        f"TacticName: {name}_0x1, StreamId: 0, Metadata: "
        + "".join(f"[ONNX Layer: {node}]" for node in nodes.split())
    )


def listing(*layers: str) -> str:
    return "\n".join(("Layers:", *layers, "", "I/O Tensors:", " Name: x, IOMode: Input"))


def test_bytes_are_those_of_every_tensor_and_weights_those_of_constants() -> None:
    product = layer(
        "node_matmul",
        [tensor("x", "4,8")],
        [tensor("y", "4,16", "Float")],
        [tensor("w", "8,16"), tensor("alpha", "1", "Float")],
        kind="gemm",
        nodes="node_matmul node_add",
    )
    (kernel,) = read_kernels(listing(product), {"x"})
    assert (kernel.kind, kernel.nodes) == ("gemm", ("node_matmul", "node_add"))
    assert kernel.weight_bytes == 8 * 16 * 2 + 4
    assert kernel.bytes == kernel.weight_bytes + 4 * 8 * 2 + 4 * 16 * 4
    assert kernel.item_bytes == 2


def test_native_tensorrt_lists_constants_among_the_inputs() -> None:
    """As 10.x prints it: no constants of their own, a location, the type behind a slash."""
    first = (
        "Name: matmul_myl0_0, LayerType: gemm, Inputs: [ { Name: x, Location: Device, "
        "Dimensions: [4,8], Format/Datatype: Half }, { Name: weight, Dimensions: [8,16], "
        "Format/Datatype: Half }], Outputs: [ { Name: inner [profile 1], Dimensions: [4,16], "
        "Format/Datatype: Half }], TacticName: sm80_xmma, StreamId: 0, Metadata: "
        "[ONNX Layer: a]\x1e[ONNX Layer: b]"
    )
    second = (
        "Name: Reformatting CopyNode for Output Tensor 0 to {ForeignNode[a...b]}, LayerType: "
        "Reformat, Inputs: [ { Name: inner, Location: Device, Dimensions: [4,16], "
        "Format/Datatype: Half }], Outputs: [ { Name: y, Location: Device, Dimensions: [4,16], "
        "Format/Datatype: Row major linear FP32 format (kLINEAR) }], ParameterType: Reformat, "
        "Origin: REFORMAT, TacticValue: 0x00000000000003e8, StreamId: 0, Metadata: "
    )
    product, reformat = read_kernels(listing(first, second), {"x"})
    assert product.nodes == ("a", "b")
    assert product.weight_bytes == 8 * 16 * 2
    assert product.bytes == (8 * 16 + 4 * 8 + 4 * 16) * 2
    assert reformat.bytes == 4 * 16 * (2 + 4)
    assert reformat.weight_bytes == 0


def test_a_gather_reads_no_more_than_it_writes() -> None:
    row = [tensor("hidden", "2,8")]
    lookup = layer("__myl_Gath", [tensor("ids", "2", "Int64")], row, [tensor("table", "900,8")])
    (kernel,) = read_kernels(listing(lookup), {"ids"})
    assert kernel.weight_bytes == 2 * 8 * 2
    assert kernel.bytes == 2 * 8 * 2 * 2 + 2 * 8


def test_a_scatter_in_place_writes_the_rows_it_is_given() -> None:
    rows = tensor("rows", "3,8")
    scatter = layer(
        "__myl_Scat",
        [tensor("old", "99,8"), tensor("at", "3", "Int64"), rows],
        [tensor("old", "99,8")],
    )
    elsewhere = layer("__myl_Scat", [tensor("old", "99,8"), rows], [tensor("new", "99,8")])
    in_place, copied = read_kernels(listing(scatter, elsewhere), {"old", "at", "rows"})
    assert in_place.bytes == 3 * 8 * 2 * 2 + 3 * 8
    assert copied.bytes == 99 * 8 * 2 * 2 + 3 * 8 * 2


def test_what_is_broadcast_is_read_once() -> None:
    wide = layer("__myl_Add", [tensor("x", "50,8", strides="0,1")], [tensor("y", "50,8")])
    (kernel,) = read_kernels(listing(wide), {"x"})
    assert kernel.bytes == 8 * 2 + 50 * 8 * 2


def test_layers_that_run_nothing_are_no_kernels() -> None:
    layers = [
        layer(kind, [tensor("x", "2")], [tensor("y", "2")], kind=kind)
        for kind in ("NoOp", "signal", "wait", "Constant", "gemm")
    ]
    assert [kernel.kind for kernel in read_kernels(listing(*layers), {"x"})] == ["gemm"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Engine Layer Information:\nLayer(Myelin): x, Tactic: 0x0", "printed no list"),
        ("Layers:\n\nI/O Tensors:", "list of layers is empty"),
        (listing(layer("a", [tensor("x", "2", "Complex")], [])), "type 'Complex'"),
        (listing("Name: a, LayerType: gemm, Inputs: [ ]"), "a layer reads 'Name: a"),
        (
            listing(layer("a", [tensor("x", "-1,2")], [])),
            r"a tensor among .* is not as known",
        ),
        (listing(layer("a", [tensor("x", "4,2", strides="1")], [])), "of 2 axes has 1 strides"),
    ],
)
def test_a_list_that_is_not_as_known_is_refused(said: str, why: str) -> None:
    with pytest.raises(LayerListError, match=why):
        read_kernels(said, {"x"})


def test_the_list_is_found_among_all_that_a_compiler_says() -> None:
    other = "Layers: 12 were fused"
    wanted = listing(layer("a", [tensor("x", "2")], []))
    assert message_of(iter(["[X] Parsing", f"[X] {wanted}", other])) == f"[X] {wanted}"
    assert message_of(iter(["Parsing", other])) == ""


def test_a_nodes_operations_are_shared_by_its_kernels() -> None:
    halves = [layer(name, [tensor("x", "2")], [], nodes="product") for name in ("a", "b")]
    kernels = with_macs(read_kernels(listing(*halves), {"x"}), {"product": 101})
    assert [kernel.macs for kernel in kernels] == [50, 51]
    with pytest.raises(LayerListError, match="none of its layers names lost"):
        with_macs(kernels, {"lost": 1})


@pytest.mark.parametrize(
    ("homes", "fused"),
    [
        ([("scores", "softmax", "sums")], True),
        ([("scores", "softmax"), ("sums",)], False),
        ([("scores",), ("softmax", "sums")], False),
        ([("scores",), ("softmax",), ("sums",)], False),
    ],
)
def test_attention_is_fused_where_both_products_are_in_the_softmaxs_kernel(
    homes: list[tuple[str, ...]], fused: bool
) -> None:
    kernels = [Kernel("k", "kgen", nodes, 1, 0, 2) for nodes in homes]
    assert _is_fused("softmax", kernels, {"scores": 1, "sums": 1}.keys()) is fused
    named = [Kernel("fused_mha_v2", "kgen", ("softmax",), 1, 0, 2)]
    assert _is_fused("softmax", named, {"scores": 1}.keys())
