"""A graph is handed to a runtime only if it is of the kind that stc exports.

Its operators are those of its kind, and its tensors lie in the file itself or in files that the
manifest lists, at the sizes they say they have. So loading it opens nothing else and runs no loop.
Nothing in it can be computed while it is loaded from tensors alone, which a few nodes could make as
large as they like. Operators of ONNX Runtime's own check their sizes poorly: they have the
attributes and the sizes of tensors that stc-export gives them.

Not seen here: what is computed from inputs when the graph runs, among it the positions that rows of
a rotation's tables are looked up by, and what is computed from their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from stc.onnx_files.onnx_file import Node, OnnxFile, OnnxFileError, StoredTensor, read_onnx
from stc.onnx_files.operators import (
    EXTENDED,
    INT4_PRODUCT,
    INT4_SIZES,
    OWN_ATTRIBUTES,
    PORTABLE,
    RUNTIME_DOMAIN,
)

MAX_NODES = 512
"""An exported graph has at most some seventy."""

MAX_GRAPH_BYTES = 256 << 10
"""Of a graph's own file: without its weights it has some 6 kB."""

MAX_AXES = 8

_ITEM_BYTES = {1: 4, 2: 1, 6: 4, 7: 8, 9: 1, 10: 2}
"""By ONNX's number: float32, uint8, int32, int64, bool, float16."""

_PLACE = {"location", "offset", "length"}


class GraphRefusedError(ValueError):
    """A graph that must not be loaded: `got`, where `expected` would be right."""

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(got)
        self.got = got
        self.expected = expected


def check_graph(
    content: bytes,
    files: Mapping[str, int],
    *,
    own: bool = False,
    group: int | None = None,
    positions: int = 0,
) -> frozenset[str]:
    """The files that tensors of the graph lie in, all of them among `files`, by size in bytes.

    `content` has at most MAX_GRAPH_BYTES; `files` are named as the graph names them. own: it may
    have operators of ONNX Runtime's own. group: values of a four-bit matrix that share a scale.
    positions: rows that a rotation's tables have at least. Raises GraphRefusedError.
    """
    try:
        found = read_onnx(content)
    except OnnxFileError as error:
        got = f"is not an ONNX graph as stc writes them ({error})"
        raise GraphRefusedError(got, "a graph of stc-export") from error
    if strange := sorted({node.operator for node in found.nodes} - (EXTENDED if own else PORTABLE)):
        names = ", ".join(f"{domain or 'ai.onnx'}.{name}" for domain, name in strange[:3])
        raise GraphRefusedError(f"has operators {names}", "those of stc-export's graphs")
    if len(found.nodes) > MAX_NODES:
        raise GraphRefusedError(f"has {len(found.nodes):,} nodes", f"at most {MAX_NODES}")
    places = frozenset(_places(found.tensors, len(content), files))
    _check_computed(found)
    tensors = {tensor.name: tensor.shape for tensor in found.tensors}
    for node in found.nodes:
        if node.operator[0] == RUNTIME_DOMAIN:
            _check_own(node, tensors, group, positions)
    return places


def _check_computed(found: OnnxFile) -> None:
    """Every name is given once, and every node waits for an input of the graph."""
    given = {tensor.name for tensor in found.tensors}
    if len(given) < len(found.tensors):
        raise GraphRefusedError("has tensors of one name", "a name for each")
    stored = frozenset(given)
    for node in found.nodes:
        outputs = [name for name in node.outputs if name]
        if len(set(outputs)) < len(outputs) or not given.isdisjoint(outputs):
            raise GraphRefusedError(f"has a tensor {outputs[0][:99]!r} twice", "a name for each")
        given.update(outputs)
        # Runtimes compute what is known while they load.
        if stored.issuperset(filter(None, node.inputs)):
            got = f"has a {node.operator[1]} of stored tensors alone"
            raise GraphRefusedError(got, "none, as in graphs of stc-export")


def _check_own(
    node: Node, tensors: Mapping[str, tuple[int, ...]], group: int | None, positions: int
) -> None:
    """An operator of ONNX Runtime's own reads no further than its tensors go."""
    name = node.operator[1]
    sizes = {key: node.attributes.get(key) or 0 for key in INT4_SIZES}
    expected: dict[str, int] = dict(OWN_ATTRIBUTES[name])
    if name == INT4_PRODUCT:
        expected |= sizes | {"block_size": group or 0}
    if node.attributes != expected or (name == INT4_PRODUCT and min(expected.values()) < 1):
        got = f"has a {name} with {node.attributes}"[:300]
        raise GraphRefusedError(got, f"{expected}")
    shapes = [tensors.get(tensor, ()) for tensor in node.inputs]
    if name == INT4_PRODUCT:
        groups = -(-expected["K"] // expected["block_size"])
        codes = (expected["N"], groups, expected["block_size"] * expected["bits"] // 8)
        right = shapes == [(), codes, (expected["N"] * groups,)]
    else:
        right = (
            len(shapes) == 4
            and shapes[2] == shapes[3]
            and len(shapes[2]) == 2
            and shapes[2][0] >= positions
        )
    if not right:
        got = f"has a {name} of tensors {[list(shape) for shape in shapes[:5]]}"
        raise GraphRefusedError(got, "the sizes that stc-export gives them")


def _places(
    tensors: list[StoredTensor], content_bytes: int, files: Mapping[str, int]
) -> Iterator[str]:
    inside, outside = 0, 0
    for tensor in tensors:
        name = f"tensor {tensor.name!r}"
        item = _ITEM_BYTES.get(tensor.data_type)
        if item is None:
            expected = "one of stc-export's number types"
            raise GraphRefusedError(f"{name} has ONNX type {tensor.data_type}", expected)
        if len(tensor.shape) > MAX_AXES or any(axis < 0 for axis in tensor.shape):
            got = f"{name} has shape {list(tensor.shape[: MAX_AXES + 1])}"
            raise GraphRefusedError(got, f"at most {MAX_AXES} axes, none negative")
        if tensor.external is None:
            # A stored value takes a byte or more, so this bounds what a shape can ask for.
            inside += math.prod(tensor.shape)
            if inside > content_bytes:
                got = f"{name} has shape {list(tensor.shape)}"
                raise GraphRefusedError(got, "no more values than the file holds")
            continue
        size = item * math.prod(tensor.shape)
        outside += size
        yield _place(name, tensor.external, size, files)
    if outside > sum(files.values()):
        raise GraphRefusedError(
            f"has tensors of {outside:,} bytes", "no more than its weights files"
        )


def _place(name: str, external: dict[str, str], size: int, files: Mapping[str, int]) -> str:
    """The file that a tensor of `size` bytes lies in."""
    location = external.get("location", "")
    if location not in files:
        raise GraphRefusedError(f"{name} lies in {location!r}", "a file that the manifest lists")
    if not external.keys() <= _PLACE:
        raise GraphRefusedError(
            f"{name} has {sorted(external.keys() - _PLACE)}", "a place and no more"
        )
    offset, length = (external.get(key, "0") for key in ("offset", "length"))
    # As many digits as a file's size can have; str.isdigit knows other alphabets' digits too.
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in (offset, length)):
        raise GraphRefusedError(f"{name} lies at offset {offset!r}, length {length!r}", "numbers")
    if int(length) != size or int(offset) + size > files[location]:
        got = f"{name} of {size:,} bytes lies at {offset} + {length} in {location}"
        raise GraphRefusedError(got, f"a place in its {files[location]:,} bytes")
    return location
