"""The compiler's own list of an engine's layers, read: kernels, and the bytes each of them moves.

TensorRT prints it while it builds with `ProfilingVerbosity.DETAILED`, one layer a line: name, type,
inputs, constants and outputs with shapes and types, tactic, and the ONNX nodes that went into it.
TensorRT-RTX says which inputs are constants; native TensorRT up to 10.x leaves them among the
inputs, where they are known by being written by no layer and being no input of the graph.

Bytes are those of whole tensors, each counted for every kernel that reads or writes it: what a
cache holds between two kernels is not seen. Two exceptions, where a table would count for a row of
it: a gather reads no more of a tensor than it writes, and a scatter that works in place (one name
among inputs and outputs) writes the rows it is given.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

_HEAD = "Layers:"
_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<rest>.*)")
_OUTPUTS = "], Outputs: ["
_CONSTANTS = "], Constants: ["
_BEGIN = "{ Name: "
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[\d,]*)\]"
    r"(?:, Strides: \[(?P<strides>[\d,]*)\])?.*?\bDatatype: (?P<dtype>.*?)(?:, Format:.*?)? \}"
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\]")
_PROFILE = re.compile(r" \[profile \d+\]")

_ITEM_BYTES = {
    "float": 4,
    "fp32": 4,
    "half": 2,
    "fp16": 2,
    "bfloat16": 2,
    "bf16": 2,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "fp8": 1,
    "bool": 1,
}
_NO_KERNEL = frozenset({"noop", "constant", "signal", "wait"})
"""Types of layers that run nothing on the GPU."""
_ATTENTION = "mha"
"""In the name of every kernel of fused attention."""


class LayerListError(ValueError):
    """The compiler printed no list of layers, or not as it is known to."""


@dataclass(frozen=True)
class Kernel:
    """One layer of an engine.

    kind: the compiler's type of it (gemm, kgen, ...). nodes: the ONNX nodes that went into it.
    bytes: read and written; weight_bytes: of those, constants. item_bytes: of an element of the
    largest tensor it reads, 2 for float16. macs: multiply-accumulates.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    bytes: int
    weight_bytes: int
    item_bytes: int
    macs: int = 0

    @property
    def is_attention(self) -> bool:
        """Whether its name says that it is a whole attention."""
        return _ATTENTION in self.name.lower()


@dataclass(frozen=True)
class _Tensor:
    name: str
    size: int
    item_bytes: int


def read_kernels(said: str, inputs: Set[str]) -> list[Kernel]:
    """The kernels of the list in `said`, a message of the compiler's; `inputs` are the graph's.

    Raises LayerListError.
    """
    _, found, text = said.partition(_HEAD)
    if not found:
        raise LayerListError("it printed no list of layers")
    lines = (line.strip() for line in text.split("\n"))  # nodes are parted by other separators
    parsed = [_layer(line) for line in lines if line.startswith("Name: ") and "LayerType" in line]
    if not parsed:
        raise LayerListError("its list of layers is empty")
    written = {one.name for *_, outputs, _ in parsed for one in outputs}
    kernels = []
    for name, kind, read, constants, outputs, nodes in parsed:
        if kind.lower() in _NO_KERNEL:
            continue
        unmarked = [one for one in read if one.name not in written | inputs]
        constants, read = [*constants, *unmarked], [one for one in read if one not in unmarked]
        weights = _read_bytes(name, constants, outputs)
        moved = weights + _read_bytes(name, read, outputs) + _written_bytes(name, read, outputs)
        largest = max(read or constants or outputs, key=lambda one: one.size)
        kernels.append(Kernel(name, kind, nodes, moved, weights, largest.item_bytes))
    return kernels


def onnx_nodes(text: str) -> list[str]:
    """The ONNX nodes that TensorRT's metadata in `text` names, in order."""
    return _NODE.findall(text)


def message_of(messages: Iterator[str]) -> str:
    """The last of `messages` that holds a list of layers, "" when none does."""
    listing = ""
    for one in messages:
        if re.search(rf"^\W*(?:\[\w\] )?{_HEAD}\s*$", one.split("\n", 1)[0]):
            listing = one
    return listing


def _layer(
    line: str,
) -> tuple[str, str, list[_Tensor], list[_Tensor], list[_Tensor], tuple[str, ...]]:
    """Name, type, inputs, constants, outputs and ONNX nodes of a line."""
    matched = _LINE.match(line)
    if matched is None or _OUTPUTS not in matched["rest"]:
        raise LayerListError(f"a layer reads {line[:80]!r}")
    read, _, rest = matched["rest"].partition(_OUTPUTS)
    read, _, constants = read.partition(_CONSTANTS)
    nodes = tuple(dict.fromkeys(onnx_nodes(rest)))
    tensors = [list(_tensors(part)) for part in (read, constants, rest)]
    return matched["name"], matched["kind"].strip(), tensors[0], tensors[1], tensors[2], nodes


def _tensors(text: str) -> Iterator[_Tensor]:
    tensors = list(_TENSOR.finditer(text))
    if len(tensors) != text.count(_BEGIN):
        raise LayerListError(f"a tensor among {text.strip()[:80]!r} is not as known")
    for found in tensors:
        words = re.findall(r"\w+", found["dtype"].lower())
        item = next((_ITEM_BYTES[word] for word in words if word in _ITEM_BYTES), None)
        if item is None:
            raise LayerListError(f"a tensor has type {found['dtype']!r}")
        shape = _numbers(found["shape"])
        strides = _numbers(found["strides"] or "") or [1] * len(shape)
        if len(strides) != len(shape):
            raise LayerListError(f"a tensor of {len(shape)} axes has {len(strides)} strides")
        # What is broadcast along an axis is read once.
        held = math.prod(axis for axis, stride in zip(shape, strides, strict=True) if stride)
        yield _Tensor(_PROFILE.sub("", found["name"]), held * item, item)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _read_bytes(name: str, tensors: list[_Tensor], outputs: list[_Tensor]) -> int:
    sizes = [one.size for one in tensors if not _in_place(name, one, outputs)]
    if "Gath" in name:
        most = sum(one.size for one in outputs)
        sizes = [min(size, most) for size in sizes]
    return sum(sizes)


def _written_bytes(name: str, read: list[_Tensor], outputs: list[_Tensor]) -> int:
    rows = max((one.size for one in read if not _in_place(name, one, outputs)), default=0)
    return sum(min(one.size, rows) if _in_place(name, one, read) else one.size for one in outputs)


def _in_place(name: str, tensor: _Tensor, others: list[_Tensor]) -> bool:
    return "Scat" in name and any(tensor.name == other.name for other in others)


def with_macs(kernels: list[Kernel], macs: Mapping[str, int]) -> list[Kernel]:
    """`kernels` with the multiply-accumulates `macs` of ONNX nodes, each node's shared equally by
    the kernels that it went into.

    Raises LayerListError when a node that multiplies went into none.
    """
    homes = Counter(node for kernel in kernels for node in kernel.nodes)
    if lost := [node for node in macs if node not in homes]:
        raise LayerListError(f"none of its layers names {lost[0]}")
    seen: Counter[str] = Counter()

    def share(node: str) -> int:
        before, seen[node] = seen[node], seen[node] + 1
        return macs[node] * seen[node] // homes[node] - macs[node] * before // homes[node]

    return [
        Kernel(
            kernel.name,
            kernel.kind,
            kernel.nodes,
            kernel.bytes,
            kernel.weight_bytes,
            kernel.item_bytes,
            sum(share(node) for node in kernel.nodes if node in macs),
        )
        for kernel in kernels
    ]
