"""How far a method's tokens are from those of dense frames, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.runtime.evaluate.method import Chooser, Encoded


@dataclass(frozen=True)
class DenseFrame:
    """A frame of which everything was computed: tokens [n, D], hidden [T, C] after the last block,
    multiply-accumulates of the tower."""

    tokens: NDArray[Any]
    hidden: NDArray[Any]
    macs: int


@dataclass(frozen=True)
class FrameFigures:
    """One frame of a method beside the dense one.

    kept: tokens read. macs: of the tower; dense_macs: of the dense one's.
    since: frames since the last one of which every token was computed; 0 of such a frame.
    cosine, cosine_p5, cosine_min: of tokens before any was dropped with dense's: mean, 5th
    percentile and least over the frame's n tokens. relative_l2: |tokens - dense| / |dense|.
    None where the method has no such tokens.
    recall: of the M tokens whose dense hidden states after the last block lie farthest (L2) from
    those of the last reference frame, the share that block 0 recomputed; recall_chance: M / T, what
    M tokens drawn at random would reach. None where nothing or everything is recomputed.
    jaccard: tokens kept here and kept by the same chooser of dense tokens, over tokens kept by
    either; None where nothing is chosen.
    """

    kept: int
    macs: int
    dense_macs: int
    since: int
    cosine: float | None = None
    cosine_p5: float | None = None
    cosine_min: float | None = None
    relative_l2: float | None = None
    recall: float | None = None
    recall_chance: float | None = None
    jaccard: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as a dict of numbers and None."""
        return asdict(self)


def compare_frames(
    encoded: Sequence[Encoded], dense: Sequence[DenseFrame], chooser: Chooser | None
) -> list[FrameFigures]:
    """The frames of one stream of a method beside the dense ones, which `chooser` is shown."""
    figures, since, reference = [], 0, 0
    for index, (frame, expected) in enumerate(zip(encoded, dense, strict=True)):
        if frame.recomputed is None:
            since, reference = 0, index
        else:
            since += 1
        found: dict[str, float] = {}
        if frame.whole is not None:
            found |= distances(frame.whole, expected.tokens)
        if frame.recomputed is not None and len(frame.recomputed):
            found |= recall(frame.recomputed, expected.hidden, dense[reference].hidden)
        if chooser is not None:
            found["jaccard"] = jaccard(frame.kept, chooser(expected.tokens))
        kept = len(frame.kept)
        figures.append(FrameFigures(kept, frame.macs, expected.macs, since, **found))
    return figures


def distances(tokens: NDArray[Any], dense: NDArray[Any]) -> dict[str, float]:
    """`FrameFigures.cosine` and the others of [n, D] and [n, D]."""
    ours, theirs = tokens.astype(np.float64), dense.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (ours * theirs).sum(axis=1)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    whole = np.linalg.norm(theirs)
    return {
        "cosine": float(cosines.mean()),
        "cosine_p5": float(np.quantile(cosines, 0.05)),
        "cosine_min": float(cosines.min()),
        "relative_l2": float(np.linalg.norm(ours - theirs) / whole) if whole else 0.0,
    }


def recall(
    recomputed: NDArray[np.int64], hidden: NDArray[Any], reference: NDArray[Any]
) -> dict[str, float]:
    """`FrameFigures.recall` and its chance, of int64 [M], [T, C] and [T, C]."""
    changed = np.linalg.norm(hidden.astype(np.float64) - reference, axis=1)
    count = len(recomputed)
    farthest = np.argsort(-changed, kind="stable")[:count]
    hit = np.intersect1d(farthest, recomputed)
    return {"recall": len(hit) / count, "recall_chance": count / len(changed)}


def jaccard(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Common places over all places; 1 of two empty sets."""
    either = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / either if either else 1.0
