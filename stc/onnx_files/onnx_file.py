"""What an ONNX file asks of whoever loads it: operators, tensors and the files they lie in.

Read from protobuf's wire format, since a device has no `onnx`. Nothing is built: the work is one
pass over the bytes. Stricter than protobuf where that is lenient, so that no runtime can see what
is not seen here: a field twice, of another wire type or with a number that is not written in as few
bytes as it takes is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass, field

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
"""Bytes of their values."""
_DEEPEST = 16
"""Graphs within graphs."""

_Wires = dict[int, tuple[int, ...]]
_MODEL: _Wires = dict.fromkeys((7, 20, 25), (_BYTES,))
"""Fields that are read, and their wire types: graph, training_info, functions."""
_GRAPH: _Wires = dict.fromkeys((1, 5, 15), (_BYTES,))
"""node, initializer, sparse_initializer."""
_NODE: _Wires = dict.fromkeys((1, 2, 4, 5, 7), (_BYTES,))
"""input, output, op_type, attribute, domain."""
_ATTRIBUTE: _Wires = {
    **dict.fromkeys((3, 20), (_VARINT,)),  # i, type
    # name, t, g, tensors, graphs, sparse_tensor, sparse_tensors
    **dict.fromkeys((1, 5, 6, 10, 11, 22, 23), (_BYTES,)),
}
_INTEGER = 2
"""The type of an attribute that has i."""
_FUNCTION: _Wires = dict.fromkeys((7, 11), (_BYTES,))
"""node, attribute_proto."""
_TWO: _Wires = dict.fromkeys((1, 2), (_BYTES,))
"""What an entry, a sparse tensor and a training step have."""

Operator = tuple[str, str]
"""Domain and name; the domain of ONNX itself is empty."""


class OnnxFileError(ValueError):
    """The bytes are no ONNX model, or not in the plain form every writer uses."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor with values, wherever in the model.

    data_type: ONNX's number. stored_bytes: bytes its values take in the file itself.
    external: where they lie elsewhere (location, offset, length), None when they do not.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    stored_bytes: int
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
    """What a model holds.

    unusual: what no graph of one level with plain attributes has (subgraphs, functions, ...).
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: list[StoredTensor] = field(default_factory=list)
    unusual: set[str] = field(default_factory=set)


def read_onnx(content: bytes) -> OnnxFile:
    """What the model in `content` holds, subgraphs and functions included.

    Raises OnnxFileError.
    """
    found = OnnxFile()
    graphs = 0
    for number, value in _fields(content, _MODEL, {7}):
        if number == 7:
            graphs += 1
            _read_graph(_bytes(value), found, 0)
        elif number == 20:
            found.unusual.add("training steps")
            for _, graph in _fields(_bytes(value), _TWO):
                _read_graph(_bytes(graph), found, 1)
        else:
            found.unusual.add("functions")
            _read_function(_bytes(value), found)
    if not graphs:
        raise OnnxFileError("it has no graph")
    return found


def _read_graph(graph: bytes, found: OnnxFile, depth: int) -> None:
    if depth > _DEEPEST:
        raise OnnxFileError(f"graphs are nested more than {_DEEPEST} deep")
    for number, value in _fields(graph, _GRAPH):
        if number == 1:
            _read_node(_bytes(value), found, depth)
        elif number == 5:
            found.tensors.append(_tensor(_bytes(value)))
        else:
            found.unusual.add("sparse tensors")
            _read_sparse(_bytes(value), found)


def _read_function(function: bytes, found: OnnxFile) -> None:
    for number, value in _fields(function, _FUNCTION):
        if number == 7:
            _read_node(_bytes(value), found, 1)
        else:
            _read_attribute(_bytes(value), found, 1)


def _read_node(node: bytes, found: OnnxFile, depth: int) -> None:
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
            key, said = _read_attribute(_bytes(value), found, depth)
            if key in attributes:
                raise OnnxFileError(f"{name} has its {key} twice")
            attributes[key] = said
    found.nodes.append(Node((domain, name), tuple(inputs), tuple(outputs), attributes))


def _read_attribute(attribute: bytes, found: OnnxFile, depth: int) -> tuple[str, int | None]:
    """Its name, and its value where it is an integer."""
    name, kind, integer = "", 0, 0
    for number, value in _fields(attribute, _ATTRIBUTE, {1, 3, 5, 6, 20, 22}):
        if number == 1:
            name = _text(value)
        elif number == 20:
            kind = _number(value)
        elif isinstance(value, int):
            integer = _signed(value)
        elif number in (6, 11):
            found.unusual.add("subgraphs")
            _read_graph(value, found, depth + 1)
        elif number in (5, 10):
            found.unusual.add("tensors as attributes")
            found.tensors.append(_tensor(value))
        else:
            found.unusual.add("sparse tensors")
            _read_sparse(value, found)
    return name, integer if kind == _INTEGER else None


def _read_sparse(tensor: bytes, found: OnnxFile) -> None:
    for _, value in _fields(tensor, _TWO, {1, 2}):
        found.tensors.append(_tensor(_bytes(value)))


_TENSOR: _Wires = {
    1: (_VARINT, _BYTES),  # dims
    2: (_VARINT,),  # data_type
    **dict.fromkeys((6, 8, 9, 13), (_BYTES,)),  # string_data, name, raw_data, external_data
    **dict.fromkeys((5, 7, 11), (_VARINT, _BYTES)),  # int32_data, int64_data, uint64_data
    4: (_FIXED32, _BYTES),  # float_data
    10: (_FIXED64, _BYTES),  # double_data
    14: (_VARINT,),  # data_location
}
_VALUES = (4, 5, 6, 7, 9, 10, 11)
"""Fields that hold values, each packed or one by one."""


def _tensor(tensor: bytes) -> StoredTensor:
    name, data_type, stored, elsewhere = "", 0, 0, False
    shape: list[int] = []
    external: dict[str, str] = {}
    for number, value in _fields(tensor, _TENSOR, {2, 8, 9, 14}):
        if number == 1:
            shape += map(_signed, [value] if isinstance(value, int) else _varints(value))
        elif number == 2:
            data_type = _number(value)
        elif number == 8:
            name = _text(value)
        elif number in _VALUES:
            stored += 8 if isinstance(value, int) else len(value)
        elif number == 13:
            elsewhere = True
            key, said = _pair(_bytes(value))
            if key in external:
                raise OnnxFileError(f"{name} says its {key} twice")
            external[key] = said
        else:
            elsewhere |= bool(_number(value))
    return StoredTensor(name, data_type, tuple(shape), stored, external if elsewhere else None)


def _pair(entry: bytes) -> tuple[str, str]:
    found = dict(_fields(entry, _TWO, {1, 2}))
    return _text(found.get(1, b"")), _text(found.get(2, b""))


def _fields(
    message: bytes, wires: _Wires, single: Set[int] = frozenset()
) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields that `wires` names, with the wire types they may have.

    Those of `single` may come once.
    """
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
        if number not in wires:
            if number == 0:
                raise OnnxFileError("a field has no number")
            continue
        if wire not in wires[number]:
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
