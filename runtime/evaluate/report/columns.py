"""The columns of the result: which figures are shown, under which heading, written how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and how it is written for a method's figures."""

    heading: str
    meaning: str
    written: Callable[[Figures], str]


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}%"


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def ranged(value: float | None, interval: Any) -> str:
    """A share with its interval: `61.2% (57.9 to 64.3)`."""
    if value is None:
        return ""
    low, high = (100 * end for end in interval)
    return f"{percent(value)} ({low:.1f} to {high:.1f})"


def _flips(figures: Figures) -> str:
    if figures["right_to_wrong"] is None:
        return ""
    return f"-{figures['right_to_wrong']} +{figures['wrong_to_right']}"


def _cosines(figures: Figures) -> str:
    values = [figures[name] for name in ("cosine", "cosine_p5", "cosine_min")]
    return "" if values[0] is None else " / ".join(f"{value:.4f}" for value in values)


def _recall(figures: Figures) -> str:
    if figures["recall"] is None:
        return ""
    return f"{percent(figures['recall'])} ({percent(figures['recall_chance'])})"


ANSWERS = (
    Column(
        "accuracy",
        "share of questions answered right, and its 95% interval (Wilson)",
        lambda one: ranged(one["accuracy"], one["accuracy_interval"]),
    ),
    Column(
        "retention",
        "accuracy over dense accuracy on the same questions, and the interval that 95% of 10,000 "
        "paired resamples of whole scenes lie in",
        lambda one: ranged(one["retention"], one["interval"]),
    ),
    Column("flips", "questions that dense has right and this one wrong, and the other way", _flips),
    Column(
        "McNemar p",
        "how likely flips so uneven are where neither side is better (exact, two-sided)",
        lambda one: number(one["mcnemar_p"]),
    ),
    Column(
        "same answer", "share of answers equal to dense's", lambda one: percent(one["same_answer"])
    ),
    Column(
        "KL mean / p95",
        "KL(dense || method) over the vocabulary at the first text token of the answer, nats",
        lambda one: (
            "" if one["kl_mean"] is None else f"{number(one['kl_mean'])} / {number(one['kl_p95'])}"
        ),
    ),
)
COST = (
    Column(
        "tower MACs",
        "multiply-accumulates of the tower, as a share of dense's",
        lambda one: percent(one["tower_cost"]),
    ),
    Column(
        "frame time",
        "time from pixels to kept tokens as a share of dense's in the same runtime, measured scene "
        "by scene in turns; frames of each age since the reference take the median of that age",
        lambda one: percent(one["tower_cost_ms"]),
    ),
    Column(
        "tokens / frame",
        "tokens of a frame that the language model reads, mean",
        lambda one: number(one["tokens_per_frame"], 4),
    ),
    Column(
        "prefill ms / frame",
        "language forward over a frame's kept tokens; frames of as many tokens take their median",
        lambda one: number(one["prefill_ms_per_frame"]),
    ),
)
FIDELITY = (
    Column(
        "cosine mean / p5 / min",
        "of a frame's tokens with dense's before any is dropped: mean, 5th percentile within a "
        "frame, both averaged over frames, and the least of all",
        _cosines,
    ),
    Column(
        "relative L2",
        "|tokens - dense| / |dense| of those, mean over frames",
        lambda one: number(one["relative_l2"]),
    ),
    Column(
        "recall (chance)",
        "of the M tokens whose dense features after the last block changed most (L2) since the "
        "reference frame, the share that block 0 recomputed; in brackets what M at random reach",
        _recall,
    ),
    Column(
        "Jaccard",
        "tokens kept both here and by the same pruner of dense tokens, over those kept by either",
        lambda one: number(one["jaccard"]),
    ),
)
