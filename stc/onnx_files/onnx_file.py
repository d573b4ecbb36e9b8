"""What an ONNX file asks of whoever loads it: operators, tensors and the files they lie in.

Read from protobuf's wire format, since a device has no `onnx`. Nothing is built: the work is one
pass over the bytes. Stricter than protobuf where that is lenient, so that no runtime can see what
is not seen here: a field that is read and stands twice, has another wire type or a number that is
not written in as few bytes as it takes is refused. So is, unread, what no graph of stc-export has:
subgraphs, functions, training steps, sparse tensors and tensors as attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
"""Bytes of their values."""
_INTEGER = 2
"""The type of an attribute that has i."""

_Wires = Mapping[int, tuple[int, ...] | str]
"""Fields that are read, with the wire types they may have, and fields that are refused, as what."""
_SPARSE = "sparse tensors"
_MODEL: _Wires = {7: (_BYTES,), 20: "training steps", 25: "functions"}  # graph
_GRAPH: _Wires = {1: (_BYTES,), 5: (_BYTES,), 15: _SPARSE}  # node, initializer
_STRUCTURE: _Wires = dict.fromkeys((1, 5, 11, 12), (_BYTES,))
"""Of a graph: node, initializer, input, output."""
_NODE: _Wires = dict.fromkeys((1, 2, 4, 5, 7), (_BYTES,))
"""input, output, op_type, attribute, domain."""
_ATTRIBUTE: _Wires = {
    1: (_BYTES,),  # name
    3: (_VARINT,),  # i
    20: (_VARINT,),  # type
    **dict.fromkeys((5, 10), "tensors as attributes"),
    **dict.fromkeys((6, 11), "subgraphs"),
    **dict.fromkeys((22, 23), _SPARSE),
}
_TENSOR: _Wires = {
    1: (_VARINT, _BYTES),  # dims
    2: (_VARINT,),  # data_type
    8: (_BYTES,),  # name
    13: (_BYTES,),  # external_data
    14: (_VARINT,),  # data_location
}
_ENTRY: _Wires = {1: (_BYTES,), 2: (_BYTES,)}  # key, value

Operator = tuple[str, str]
"""Domain and name; the domain of ONNX itself is empty."""


class OnnxFileError(ValueError):
    """The bytes are no ONNX model of one level, or not in the plain form every writer uses."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor with values.

    data_type: ONNX's number. external: where its values lie when that is not the file itself
    (location, offset, length), else None.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    external: dict[str, str] | None


@dataclass(frozen=True)
class Node:
    """One operator of a graph; attributes that are no integer are None."""

    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | None]


@dataclass
class OnnxFile:
    """What a model holds."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)


def read_onnx(content: bytes) -> OnnxFile:
    """What the model in `content` holds. Raises OnnxFileError."""
    graphs = [_bytes(graph) for _, graph in _fields(content, _MODEL, {7})]
    if not graphs:
        raise OnnxFileError("it has no graph")
    found = OnnxFile()
    for number, value in _fields(graphs[0], _GRAPH):
        if number == 1:
            found.nodes.append(_node(_bytes(value)))
        else:
            found.tensors.append(_tensor(_bytes(value)))
    return found


def structure_digest(content: bytes) -> str:
    """The same for models that differ only in their names, in notes, and in the values that lie in
    other files: the blocks of one network. Raises OnnxFileError."""
    digest = hashlib.sha256()
    (graph,) = (_bytes(graph) for _, graph in _fields(content, _MODEL, {7}))
    for number, value in _fields(graph, _STRUCTURE):
        part = _bytes(value)
        if number == 5 and (tensor := _tensor(part)).external is not None:
            part = repr((tensor.name, tensor.data_type, tensor.shape)).encode()
        digest.update(b"%d %d " % (number, len(part)) + part)
    return digest.hexdigest()


def _node(node: bytes) -> Node:
    name, domain = "", ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, int | None] = {}
    for number, value in _fields(node, _NODE, {4, 7}):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 4:
            name = _text(value)
        elif number == 7:
            domain = _text(value)
        else:
            key, said = _attribute(_bytes(value))
            if key in attributes:
                raise OnnxFileError(f"{name} has its {key} twice")
            attributes[key] = said
    return Node((domain, name), tuple(inputs), tuple(outputs), attributes)


def _attribute(attribute: bytes) -> tuple[str, int | None]:
    """Its name, and its value where it is an integer."""
    found = dict(_fields(attribute, _ATTRIBUTE, {1, 3, 20}))
    name, integer, kind = _text(found.get(1, b"")), found.get(3, 0), _number(found.get(20, 0))
    return name, _signed(integer) if isinstance(integer, int) and kind == _INTEGER else None


def _tensor(tensor: bytes) -> StoredTensor:
    name, data_type, elsewhere = "", 0, False
    shape: list[int] = []
    external: dict[str, str] = {}
    for number, value in _fields(tensor, _TENSOR, {2, 8, 14}):
        if number == 1:
            shape += map(_signed, [value] if isinstance(value, int) else _varints(value))
        elif number == 2:
            data_type = _number(value)
        elif number == 8:
            name = _text(value)
        elif number == 13:
            elsewhere = True
            entry = dict(_fields(_bytes(value), _ENTRY, {1, 2}))
            key = _text(entry.get(1, b""))
            if key in external:
                raise OnnxFileError(f"{name} says its {key} twice")
            external[key] = _text(entry.get(2, b""))
        else:
            elsewhere |= bool(_number(value))
    return StoredTensor(name, data_type, tuple(shape), external if elsewhere else None)


def _fields(
    message: bytes, wires: _Wires, single: Set[int] = frozenset()
) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields that `wires` names; those of `single` may come once."""
    seen: set[int] = set()
    place, end = 0, len(message)
    while place < end:
        # Most keys and sizes are one byte: calling for each would double the time.
        key = message[place]
        place += 1
        if key >= 0x80:
            key, place = _varint(message, place - 1)
            if key >> 32:  # others read the lower bits as some field's key
                raise OnnxFileError("a field's key has more than 32 bits")
        number, wire = key >> 3, key & 7
        value: int | bytes = 0
        if wire == _VARINT:
            value, place = _varint(message, place)
            size = 0
        elif wire == _BYTES:
            size, place = _varint(message, place)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise OnnxFileError(f"a field has wire type {wire}")
        if size > end - place:
            raise OnnxFileError("it is cut short")
        place += size
        if number == 0:
            raise OnnxFileError("a field has no number")
        taken = wires.get(number)
        if taken is None:
            continue
        if isinstance(taken, str):
            raise OnnxFileError(f"it has {taken}")
        if wire not in taken:
            raise OnnxFileError(f"field {number} has wire type {wire}")
        if number in single:
            if number in seen:
                raise OnnxFileError(f"field {number} stands there twice")
            seen.add(number)
        yield number, value if wire == _VARINT else message[place - size : place]


def _varints(packed: bytes) -> Iterator[int]:
    place = 0
    while place < len(packed):
        value, place = _varint(packed, place)
        yield value


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at `place` and the place behind it."""
    if place < len(message) and message[place] < 0x80:
        return message[place], place + 1
    value = 0
    for index in range(10):
        if place + index >= len(message):
            raise OnnxFileError("it is cut short")
        byte = message[place + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if (index and not byte) or value >> 64:
                raise OnnxFileError("a number is written in too many bytes")
            return value, place + index + 1
    raise OnnxFileError("a number of more than ten bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _number(value: int | bytes) -> int:
    """Of 32 bits: protobuf drops the others of an int32 and of an enum."""
    if isinstance(value, bytes):
        raise OnnxFileError("bytes where a number belongs")
    return value & 0xFFFFFFFF


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise OnnxFileError("a number where bytes belong")
    return value


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError:
        raise OnnxFileError("a text is not UTF-8") from None
