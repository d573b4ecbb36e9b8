"""Stages on boards: what they cost, how long they would take, how many streams that leaves.

Times are roofline estimates (`stc.engines.build.roofline`), never measurements, and everything that
shows one says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stc.engines.build.layers import EngineLayers
from stc.engines.build.listing import Compiler, EngineCall, Layers
from stc.engines.build.roofline import Cost, Factors, Roofline, cost_of
from stc.engines.library.boards import Board
from stc.engines.library.plan import EngineSpec
from stc.runtime.planning.stages import PREFILL, REFERENCE, Stage, reuse_stage
from stc.settings import Settings

FRAME_RATES = (1, 2, 5, 10)
"""Frames per second of a stream that its number is told for."""

Figures = dict[str, Any]
Estimate = Callable[[Factors], float]
"""A time in ms under given factors."""


@dataclass(frozen=True)
class Planned:
    """A target: how its engines' layers were listed, and its boards, in the order of BOARDS."""

    compiler: Compiler
    layers: Layers
    boards: tuple[Board, ...]

    def cost(self, stage: Stage) -> Cost:
        """What `stage` costs the GPU."""
        return cost_of(self.layers[call] for call in stage.calls)

    def stage_time(self, stage: Stage, board: Board) -> Estimate:
        """The time of `stage` on `board` under given factors, in ms: engines, copies and the
        host's calls."""
        engines = self._roofline(stage.calls, board)
        asked = stage.asked
        copied_ms = 2e3 * asked.copied_bytes / (board.bandwidth_gb_s * 1e9)

        def time(factors: Factors) -> float:
            copies_ms = copied_ms / factors.bandwidth_efficiency
            return engines.ms(factors) + copies_ms + factors.host_call_us * asked.calls / 1e3

        return time

    def tower_time(self, stage: Stage, board: Board) -> Estimate:
        """The time of the tower's engines in `stage` on `board` under given factors, in ms: what
        stc-bench calls a frame's."""
        return self._roofline(stage.tower, board).ms

    def _roofline(self, calls: Iterable[EngineCall], board: Board) -> Roofline:
        return Roofline((self.layers[call] for call in calls), board)


def engine_figures(planned: Planned, calls: Iterable[EngineCall], factors: Factors) -> Figures:
    """What there is to say of one run of each engine of `calls`, ready for JSON, by its name.

    Engines that the compiler makes alike, as those of a tower's blocks, stand under the first of
    them; `graphs` is how many they are.
    """
    groups: dict[tuple[object, EngineLayers], list[EngineCall]] = {}
    for call in dict.fromkeys(calls):
        groups.setdefault((call[1], planned.layers[call]), []).append(call)
    board = planned.boards[0]
    return {
        EngineSpec(graph, (dict(sizes),)).stem: {
            "graphs": len(alike),
            **cost_figures(cost_of([layers])),
            "estimated_ms": Roofline([layers], board).ms(factors),
        }
        for (_, layers), alike in groups.items()
        for graph, sizes in alike[:1]
    }


def cost_figures(cost: Cost) -> Figures:
    """`cost`, ready for JSON."""
    return {
        "kernels": cost.kernels,
        "bytes": cost.bytes,
        "weight_bytes": cost.weight_bytes,
        "macs": cost.macs,
        "scratch_bytes": cost.scratch_bytes,
        "attention_fused": cost.attention_fused,
        "attentions": cost.attentions,
        "attentions_fused": cost.fused,
    }


def stage_figures(planned: Planned, stage: Stage, factors: Factors) -> Figures:
    """What there is to say of `stage`, ready for JSON; the time is that of the first board."""
    asked = stage.asked
    return {
        **cost_figures(planned.cost(stage)),
        "engine_runs": len(stage.calls),
        "enqueues": asked.enqueues,
        "copies": asked.copies,
        "copied_bytes": asked.copied_bytes,
        "synchronisations": asked.synchronisations,
        "allocations": asked.allocations,
        "frees": asked.frees,
        "estimated_ms": planned.stage_time(stage, planned.boards[0])(factors),
    }


def board_figures(
    planned: Planned,
    board: Board,
    stages: Mapping[str, Stage],
    factors: Factors,
    settings: Settings,
    needed_bytes: int,
) -> Figures:
    """What `board` makes of it, ready for JSON.

    frame_ms: of a stream's frames on average, at the settings' reference interval and selection,
    with the prefill of the tokens kept. streams: how many of so many frames per second that leaves
    time for. needed_bytes: of memory, for one stream.
    """
    ms = {name: planned.stage_time(stage, board)(factors) for name, stage in stages.items()}
    interval = settings.reference_interval
    reuse_ms = ms[reuse_stage(settings.selection)]
    frame_ms = (ms[REFERENCE] + (interval - 1) * reuse_ms) / interval + ms.get(PREFILL, 0.0)
    return {
        "memory_gib": board.memory_gib,
        "needed_bytes": needed_bytes,
        "fp16_tflops": board.fp16_tflops,
        "fp32_tflops": board.fp32_tflops,
        "bandwidth_gb_s": board.bandwidth_gb_s,
        "source": board.source,
        "estimated_ms": ms,
        "frame_ms": frame_ms,
        "fps": 1e3 / frame_ms,
        "streams": {str(rate): int(1e3 / (rate * frame_ms)) for rate in FRAME_RATES},
    }
