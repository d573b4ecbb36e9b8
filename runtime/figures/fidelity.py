"""Fidelity: how near the kept tokens are to what dense computes for the same places."""

from __future__ import annotations

from typing import Any

import numpy as np

from stc.runtime.report import FrameReport


class Fidelity:
    """Adds up token cosines of a stream's reuse frames against a dense run of the same frames.

    Memory does not grow with the stream.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.min_cosine = 1.0
        self._sum = 0.0
        self._error = 0.0
        self._norm = 0.0

    def add(self, report: FrameReport, dense: FrameReport) -> None:
        """Compare the kept tokens of `report` with `dense`'s, which must keep all n."""
        if report.kind == "reference":
            return
        got = report.tokens.astype(np.float64)
        expected = dense.tokens[report.kept].astype(np.float64)
        lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = (got * expected).sum(axis=1) / np.maximum(lengths, 1e-30)
        self.tokens += len(cosines)
        self.min_cosine = min(self.min_cosine, float(cosines.min()))
        self._sum += float(cosines.sum())
        self._error += float(((got - expected) ** 2).sum())
        self._norm += float((expected**2).sum())

    def to_json(self) -> dict[str, Any]:
        """Figures over the kept tokens of all reuse frames; None where there was none."""
        if not self.tokens:
            return {"tokens": 0, "mean_cosine": None, "min_cosine": None, "relative_l2": None}
        return {
            "tokens": self.tokens,
            "mean_cosine": self._sum / self.tokens,
            "min_cosine": self.min_cosine,
            "relative_l2": float(np.sqrt(self._error / max(self._norm, 1e-30))),
        }

    def line(self) -> str:
        """The figures in one line."""
        if not self.tokens:
            return "fidelity: no reuse frame to compare"
        figures = self.to_json()
        return (
            f"fidelity of reuse frames' kept tokens against dense: cosine "
            f"{figures['mean_cosine']:.4f} mean, {figures['min_cosine']:.4f} lowest; "
            f"relative L2 {figures['relative_l2']:.4f}"
        )
