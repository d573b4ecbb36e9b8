"""Graph contracts: the names, shapes and dtypes every graph of a bundle keeps.

The one place where these names stand; exporter, engines, runtime and tests read them from here.
Those of the vision graphs alone, with their contracts, are in `stc.method.graphs`.
Shapes use the alphabet of the README: T tokens per frame, C vision width, H heads, d head width,
M tokens recomputed, n tokens after pooling, D language width, k tokens kept, P pruner memory
width; in the language model: m text or visual tokens of one call, Q query heads, G key/value heads,
e head width, S cached rows, V vocabulary. The dtype `network` means the bundle's precision
(float32 or float16).
"""

from __future__ import annotations

from dataclasses import dataclass

# Tensor names.
HIDDEN = "hidden"
HIDDEN_OUT = "hidden_out"
KEY = "key"
VALUE = "value"
COUNT = "count"
IDS = "ids"
QUERY = "query"
KEYS = "keys"
VALUES = "values"
QUERY_POSITIONS = "query_positions"
KEY_POSITIONS = "key_positions"
LOGITS = "logits"

# Graph names.
TEXT_EMBED = "text_embed"
HEAD = "head"


def qkv_graph(block: int) -> str:
    """Name of language block `block`'s query, key and value graph."""
    return f"qkv_{block:02d}"


def attend_graph(block: int) -> str:
    """Name of language block `block`'s attend graph."""
    return f"attend_{block:02d}"


@dataclass(frozen=True)
class Port:
    """One input or output: `shape` in symbols, `dtype` float32, int64 or network."""

    name: str
    shape: tuple[str, ...]
    dtype: str = "network"


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of one kind of graph, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


_CHUNK = ("m", "D")
_QUERY = Port(QUERY, ("Q", "m", "e"))
_ROWS = ("G", "S", "e")

TEXT_EMBED_CONTRACT = Contract(
    (Port(IDS, ("m",), "int64"),),
    (Port(HIDDEN, _CHUNK),),
)
QKV_CONTRACT = Contract(
    (Port(HIDDEN, _CHUNK),),
    (_QUERY, Port(KEY, ("G", "m", "e")), Port(VALUE, ("G", "m", "e"))),
)
"""Before rotary: keys are cached un-rotated."""
ATTEND_CONTRACT = Contract(
    (
        Port(HIDDEN, _CHUNK),
        _QUERY,
        Port(KEYS, _ROWS),
        Port(VALUES, _ROWS),
        Port(QUERY_POSITIONS, ("m",), "int64"),
        Port(KEY_POSITIONS, ("S",), "int64"),
    ),
    (Port(HIDDEN_OUT, _CHUNK),),
)
"""Rotary inside, from the positions. A query sees the rows whose position is at least 0 and at most
its own; a row of position -1 is empty, so that a buffer may be longer than what it holds."""
HEAD_CONTRACT = Contract(
    (Port(HIDDEN, ("1", "D")),),
    (Port(LOGITS, ("1", "V"), "float32"),),
)


def language_graphs(blocks: int) -> dict[str, Contract]:
    """Every graph of a language model of `blocks` blocks, in running order."""
    graphs: dict[str, Contract] = {TEXT_EMBED: TEXT_EMBED_CONTRACT}
    for block in range(blocks):
        graphs[qkv_graph(block)] = QKV_CONTRACT
        graphs[attend_graph(block)] = ATTEND_CONTRACT
    graphs[HEAD] = HEAD_CONTRACT
    return graphs
