"""The document of a run: what `--json` writes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from stc.runtime.figures.machine import machine_facts
from stc.runtime.figures.metrics import StreamSummary
from stc.runtime.figures.savings import DenseComparison
from stc.runtime.video.taken_frames import EndedBy
from stc.settings import Settings


def run_document(
    summary: StreamSummary,
    *,
    settings: Settings,
    bundle: str,
    ended_by: EndedBy = "end",
    comparison: DenseComparison | None = None,
) -> dict[str, Any]:
    """`summary` with all it takes to judge or repeat it, as dicts, lists and finite numbers.

    `bundle` names the model, `ended_by` what ended the stream; `comparison` is null in the
    document where there is none.
    """
    return {
        "bundle": bundle,
        "settings": asdict(settings),
        "ended_by": ended_by,
        "summary": summary.to_json(),
        "against_dense": comparison.to_json() if comparison else None,
        "machine": machine_facts(),
    }
