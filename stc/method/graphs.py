"""The graphs of the `stc` family (`stc.method.family`): their names, contracts and ports.

Shapes use the alphabet of `stc.contracts`.
"""

from __future__ import annotations

from stc.contracts import COUNT, HIDDEN, HIDDEN_OUT, KEY, VALUE, Contract, Port
from stc.manifest import Precision, VisionSpec
from stc.ports import GraphPorts, contract_ports
from stc.settings import SCORINGS, Scoring

PIXEL_VALUES = "pixel_values"
REF_KEY = "ref_key"
REF_VALUE = "ref_value"
RESIDUAL = "residual"
REF_RESIDUAL = "ref_residual"
SCORE = "score"
INDICES = "indices"
PLACES = "places"
ROWS = "rows"
ATTENTION = "attention"
TOKENS = "tokens"
HISTORY_MEAN = "history_mean"
HISTORY_COUNT = "history_count"
KEPT = "kept"
KEPT_INDICES = "kept_indices"
FRAME_MEAN = "frame_mean"

EMBED = "embed"
COMPARE = "compare"
SELECT = "select"
PLACE = "place"
ADD = "add"
MERGE = "merge"
PROJECT = "project"


def reference_graph(block: int) -> str:
    """Name of block `block`'s reference graph."""
    return f"reference_{block:02d}"


def keys_graph(block: int) -> str:
    """Name of block `block`'s keys graph."""
    return f"keys_{block:02d}"


def update_graph(block: int) -> str:
    """Name of block `block`'s update graph."""
    return f"update_{block:02d}"


def mlp_graph(block: int) -> str:
    """Name of block `block`'s MLP graph."""
    return f"mlp_{block:02d}"


def takes_any_frame(graph: str) -> bool:
    """Whether the free M of `graph` is the rows of a reuse frame, and of a reference frame T."""
    return kind_of(graph)[0] == kind_of(mlp_graph(0))[0]


def prune_graph(scoring: Scoring) -> str:
    """Name of the prune graph of `scoring`."""
    return f"prune_{scoring.replace('-', '_')}"


def memory_width(scoring: Scoring, width: int) -> int:
    """P, the channels of a frame's mean that scoring `scoring` remembers, for D = `width`.

    `gaussian` remembers the int(D/2) channels of lowest variance, the others all D.
    """
    return width // 2 if scoring == "gaussian" else width


PRUNERS = tuple(map(prune_graph, SCORINGS))
"""Graphs of which a stream runs one or none."""


def kind_of(graph: str) -> tuple[str, int]:
    """What structure `graph` has, which all blocks share, and its block, 0 without one."""
    kind, _, block = graph.rpartition("_")
    return (kind, int(block)) if block.isdecimal() else (graph, 0)


COSINE_EPS = 1e-8
"""Least product of lengths that a cosine divides by."""
ALWAYS = -2.0
"""Score of a prefix token, below every cosine: it is always among the lowest, and so recomputed.

What a class token is made of does not change from frame to frame; ranked by its key, it would be
recomputed in no block, and speak of the reference frame.
"""

_HIDDEN = ("T", "C")
_ROWS = ("M", "C")
_INDICES = Port(INDICES, ("M",), "int64")
_PLACES = Port(PLACES, ("T",), "int64")
_COUNT = Port(COUNT, ("1",), "int64")

EMBED_CONTRACT = Contract(
    (Port(PIXEL_VALUES, ("3", "Hpx", "Wpx")),),
    (Port(HIDDEN, _HIDDEN),),
)
REFERENCE_CONTRACT = Contract(
    (Port(HIDDEN, _HIDDEN),),
    (Port(KEY, _HIDDEN), Port(VALUE, _HIDDEN), Port(ATTENTION, _HIDDEN)),
)
KEYS_CONTRACT = Contract(
    (Port(HIDDEN, _HIDDEN),),
    (Port(KEY, _HIDDEN),),
)
"""Keys and values lie token by token, all heads of a token together: the layout that TensorRT's
attention reads (docs/adr/0020)."""
COMPARE_CONTRACT = Contract(
    (Port(KEY, _HIDDEN), Port(REF_KEY, _HIDDEN)),
    (Port(SCORE, ("T",), "float32"),),
)
SELECT_CONTRACT = Contract(
    (Port(SCORE, ("T",), "float32"), _COUNT),
    (_INDICES,),
)
PLACE_CONTRACT = Contract((_INDICES,), (_PLACES,))
UPDATE_CONTRACT = Contract(
    (
        Port(HIDDEN, _HIDDEN),
        Port(KEY, _HIDDEN),
        Port(REF_VALUE, _HIDDEN),
        _INDICES,
        _PLACES,
    ),
    (Port(ROWS, _ROWS), Port(ATTENTION, _ROWS)),
)
MLP_CONTRACT = Contract(
    (Port(ROWS, _ROWS), Port(ATTENTION, _ROWS)),
    (Port(RESIDUAL, _ROWS),),
)
"""One engine for both kinds of frame: its weights are two thirds of a block's (docs/adr/0020)."""
ADD_CONTRACT = Contract(
    (Port(HIDDEN, _HIDDEN), Port(RESIDUAL, _HIDDEN)),
    (Port(HIDDEN_OUT, _HIDDEN),),
)
MERGE_CONTRACT = Contract(
    (Port(HIDDEN, _HIDDEN), Port(REF_RESIDUAL, _HIDDEN), Port(RESIDUAL, _ROWS), _PLACES),
    (Port(HIDDEN_OUT, _HIDDEN),),
)
PROJECT_CONTRACT = Contract(
    (Port(HIDDEN, _HIDDEN),),
    (Port(TOKENS, ("n", "D")),),
)
PRUNE_CONTRACT = Contract(
    (
        Port(TOKENS, ("n", "D")),
        Port(HISTORY_MEAN, ("P",), "float32"),
        Port(HISTORY_COUNT, ("1",), "float32"),
        _COUNT,
    ),
    (
        Port(KEPT, ("k", "D")),
        Port(KEPT_INDICES, ("k",), "int64"),
        Port(FRAME_MEAN, ("P",), "float32"),
    ),
)
"""`count` (M of `select`, k of `prune`) is an input with a default value: ONNX Runtime may
override it per call, a TensorRT parser sees the constant its TopK needs."""


def vision_graphs(blocks: int) -> dict[str, Contract]:
    """Every graph of the family with `blocks` = L, in running order."""
    graphs: dict[str, Contract] = {
        EMBED: EMBED_CONTRACT,
        COMPARE: COMPARE_CONTRACT,
        SELECT: SELECT_CONTRACT,
        PLACE: PLACE_CONTRACT,
        ADD: ADD_CONTRACT,
        MERGE: MERGE_CONTRACT,
    }
    for block in range(blocks):
        graphs[reference_graph(block)] = REFERENCE_CONTRACT
        graphs[keys_graph(block)] = KEYS_CONTRACT
        graphs[update_graph(block)] = UPDATE_CONTRACT
        graphs[mlp_graph(block)] = MLP_CONTRACT
    graphs[PROJECT] = PROJECT_CONTRACT
    for scoring in SCORINGS:
        graphs[prune_graph(scoring)] = PRUNE_CONTRACT
    return graphs


def vision_ports(spec: VisionSpec, precision: Precision) -> dict[str, GraphPorts]:
    """The ports of every graph of a model, by name, in running order; M and k stay free."""
    memories = {
        prune_graph(scoring): memory_width(scoring, spec.language_width) for scoring in SCORINGS
    }
    return {
        name: contract_ports(contract, {**_sizes(spec), "P": memories.get(name, 0)}, precision)
        for name, contract in vision_graphs(spec.blocks).items()
    }


def _sizes(spec: VisionSpec) -> dict[str, int]:
    """Sizes of a tower's axes; M and k stay free."""
    return {
        "1": 1,
        "3": 3,
        "Hpx": spec.image_height,
        "Wpx": spec.image_width,
        "T": spec.tokens,
        "C": spec.width,
        "n": spec.pooled,
        "D": spec.language_width,
    }
