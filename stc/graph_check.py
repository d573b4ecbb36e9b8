"""A graph is handed to a runtime only if it is of the kind that stc exports.

Its operators are those of its kind, and its tensors lie in the file itself or in files that the
manifest lists, at the sizes they say they have. So loading it opens nothing else, runs no loop and
takes no more memory than the bundle's files are long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from stc.onnx_file import OnnxFileError, StoredTensor, read_onnx
from stc.operators import OPERATORS, GraphKind

MOST_NODES = 512
"""An exported graph has at most some seventy."""

MOST_GRAPH_BYTES = 256 << 10
"""Of a graph's own file: without its weights it has some 6 kB."""

MOST_AXES = 8

_ITEM_BYTES = {1: 4, 2: 1, 6: 4, 7: 8, 9: 1, 10: 2}
"""By ONNX's number: float32, uint8, int32, int64, bool, float16."""

_PLACE = {"location", "offset", "length"}


class GraphRefusedError(ValueError):
    """A graph that must not be loaded: `got`, where `expected` would be right."""

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(got)
        self.got = got
        self.expected = expected


def check_graph(content: bytes, kind: GraphKind, files: Mapping[str, int]) -> frozenset[str]:
    """The files that tensors of the graph lie in, all of them among `files`, by size in bytes.

    `files` are named as the graph names them. Raises GraphRefusedError.
    """
    if len(content) > MOST_GRAPH_BYTES:
        raise GraphRefusedError(f"has {len(content):,} bytes", f"at most {MOST_GRAPH_BYTES:,}")
    try:
        found = read_onnx(content)
    except OnnxFileError as error:
        raise GraphRefusedError(
            f"is not an ONNX graph ({error})", "a graph of stc-export"
        ) from error
    allowed = OPERATORS[kind]
    if strange := sorted(found.operators - allowed):
        names = ", ".join(f"{domain or 'ai.onnx'}.{name}" for domain, name in strange[:3])
        raise GraphRefusedError(f"has operators {names}", f"those of stc-export's {kind}")
    if found.unusual:
        got = f"has {', '.join(sorted(found.unusual))}"
        raise GraphRefusedError(got, f"none, as in stc-export's {kind}")
    if found.nodes > MOST_NODES:
        raise GraphRefusedError(f"has {found.nodes:,} nodes", f"at most {MOST_NODES}")
    return frozenset(_places(found.tensors, len(content), files))


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
        if len(tensor.shape) > MOST_AXES or any(axis < 0 for axis in tensor.shape):
            got = f"{name} has shape {list(tensor.shape[: MOST_AXES + 1])}"
            raise GraphRefusedError(got, f"at most {MOST_AXES} axes, none negative")
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
