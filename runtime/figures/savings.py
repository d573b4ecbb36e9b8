"""The comparison with dense: what a stream would have cost with every token of every frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from stc.runtime.figures.metrics import KindSummary, StreamSummary

Basis = Literal["dense run", "reference frames"]


@dataclass(frozen=True, kw_only=True)
class DenseComparison:
    """A stream against dense, per frame. A saving is 1 - here / dense, so less than 0 is a loss.

    basis: what dense was measured on: a run of its own, or this run's reference frames, which are
        the same graphs over all tokens. Both are the same runtime; nothing else is comparable.
    vision_ms, push_ms: medians by kind of frame, weighted by how often the kind occurred: one
        slow frame (warm-up, another process) does not decide.
    prefill_tokens: visual tokens that reach the language model; prefill is linear in them.
    """

    basis: Basis
    dense_vision_ms: float
    vision_ms: float
    vision_saving: float
    dense_push_ms: float
    push_ms: float
    push_saving: float
    dense_prefill_tokens: float
    prefill_tokens: float
    prefill_tokens_saving: float

    def to_json(self) -> dict[str, Any]:
        """The same as a dict of strings and finite numbers."""
        return asdict(self)


def compare_with_dense(
    summary: StreamSummary, dense: StreamSummary | None = None
) -> DenseComparison | None:
    """`summary` against the run `dense`, or against its own reference frames.

    A run's own reference frames say nothing of pruning, so there dense keeps all n tokens. None
    when there is nothing to compare with: no frame, or no reference frame and no `dense`.
    """
    kinds = tuple(summary.kinds().values())
    if dense is not None:
        basis: Basis = "dense run"
        dense_kinds = tuple(dense.kinds().values())
        dense_tokens = dense.tokens_kept
    else:
        basis = "reference frames"
        dense_kinds = (summary.reference,) if summary.reference else ()
        dense_tokens = float(summary.pooled)
    if not kinds or not dense_kinds:
        return None
    dense_vision_ms, vision_ms = _vision_ms(dense_kinds), _vision_ms(kinds)
    dense_push_ms, push_ms = _push_ms(dense_kinds), _push_ms(kinds)
    return DenseComparison(
        basis=basis,
        dense_vision_ms=dense_vision_ms,
        vision_ms=vision_ms,
        vision_saving=_saving(vision_ms, dense_vision_ms),
        dense_push_ms=dense_push_ms,
        push_ms=push_ms,
        push_saving=_saving(push_ms, dense_push_ms),
        dense_prefill_tokens=dense_tokens,
        prefill_tokens=summary.tokens_kept,
        prefill_tokens_saving=_saving(summary.tokens_kept, dense_tokens),
    )


def _vision_ms(kinds: tuple[KindSummary, ...]) -> float:
    return _per_frame([(kind.frames, kind.stages["vision"].p50_ms) for kind in kinds])


def _push_ms(kinds: tuple[KindSummary, ...]) -> float:
    return _per_frame([(kind.frames, kind.total.p50_ms) for kind in kinds])


def _per_frame(medians_ms: list[tuple[int, float]]) -> float:
    return sum(frames * ms for frames, ms in medians_ms) / sum(frames for frames, _ in medians_ms)


def _saving(here: float, dense: float) -> float:
    return 1.0 - here / dense if dense else 0.0
