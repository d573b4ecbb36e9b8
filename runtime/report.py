"""What one pushed frame did: the value every display, file and benchmark reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc.errors import StcError
from stc.method.family import FrameKind

STAGES = ("preprocess", "vision", "project", "prune")
"""Stages of a frame in running order; keys of `FrameReport.stage_ms`."""


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Frames that went through the language model since this was last told.

    frames: remembered, in `ms` milliseconds of language calls; the prompt's own text tokens are
        no part of them.
    left_out: frames that could not be remembered, and the first `error` that says why.
    """

    frames: int = 0
    ms: float = 0.0
    left_out: int = 0
    error: StcError | None = None

    def __add__(self, later: Prefill) -> Prefill:
        return Prefill(
            frames=self.frames + later.frames,
            ms=self.ms + later.ms,
            left_out=self.left_out + later.left_out,
            error=self.error or later.error,
        )


@dataclass(frozen=True, kw_only=True)
class FrameReport:
    """One frame's outcome; its arrays are the caller's own.

    index: number of the frame in its stream, from 0.
    time_s: presentation time in the source.
    kind: reference frame or reuse frame.
    recomputed: indices int64 [M], ascending, of the tokens recomputed in block 0, out of T (prefix
        tokens, then patches row by row); all T on a reference frame. Layerwise selection may
        choose others in later blocks.
    kept: indices int64 [k], ascending, of the tokens kept, out of n.
    tokens: float [k, D], the kept tokens, on the host.
    stage_ms: wall time by stage of STAGES.
    engine_ms: wall time inside engines; the rest of `total_ms` is the host's.
    total_ms: wall time of the push, up to the kept tokens.
    prefill: what was remembered since the report before, and what could not be; this frame's
        tokens may wait for more. None without a language side.
    """

    index: int
    time_s: float
    kind: FrameKind
    recomputed: NDArray[np.int64]
    kept: NDArray[np.int64]
    tokens: NDArray[np.floating]
    stage_ms: dict[str, float]
    engine_ms: float
    total_ms: float
    prefill: Prefill | None = None
