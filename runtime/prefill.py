"""What it took to remember kept tokens: the value that reports, summaries and tests read."""

from __future__ import annotations

from dataclasses import dataclass

from stc.errors import StcError


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
