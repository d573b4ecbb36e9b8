"""The plan as one picture: a bar for every board and stage, in a file that needs nothing else."""

from __future__ import annotations

from stc.runtime.evaluate.report.charts import Bar, alone, amounts
from stc.runtime.evaluate.report.page import CSS
from stc.runtime.planning.estimate import Figures
from stc.runtime.planning.show import ESTIMATE, STAGES, three_figures


def picture(document: Figures) -> str:
    """An SVG of the boards of `document`, as stc-plan writes it."""
    groups = {
        f"{name} ({target_name}): {three_figures(board['fps'])} frames/s": [
            Bar(told, ms, f"{three_figures(ms)} ms", number)
            for number, (stage, told) in enumerate(STAGES.items())
            if (ms := board["estimated_ms"].get(stage)) is not None
        ]
        for target_name, target in document["targets"].items()
        for name, board in target["boards"].items()
    }
    title = f"{document['bundle']}: milliseconds per stage"
    return alone(amounts(groups, title, ESTIMATE), CSS)
