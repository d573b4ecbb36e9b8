"""Measured times beside estimated ones: the factors under which they differ least.

A file of `stc-bench --json` has the times of a frame's tower, one of `stc-bench --prefill --json`
those of the language side. All files of one machine have one fit. On a board of the table the
factors found are the board's own, and serve estimates of others. Of another machine, a processor
among them, they are its speed as a share of the first board's peak: they tell how well the list of
layers explains its times, and nothing of a GPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from stc.engines.build.roofline import Factors
from stc.engines.library.boards import Board, known_board
from stc.errors import SettingsError
from stc.manifest import MAX_POSITIONS, Manifest
from stc.runtime.evaluate.benchmarks.entries import parse_json, read_text
from stc.runtime.planning.estimate import Estimate
from stc.runtime.planning.stages import (
    PREFILL,
    PREFILL_ALL,
    REFERENCE,
    TOKEN,
    reuse_stage,
)
from stc.settings import Settings
from stc.shell.ranges import shown, whole

_FIX = "write it with stc-bench BUNDLE --json FILE, or with --prefill too"
_LEAST = 1e-6
"""Of a share of the peak: a processor has that much of a GPU's."""
_STEPS = 25
_ROUNDS = 6
_PULL = 1e-4
"""How little it weighs that both shares differ: it decides where times do not."""
_SAME_BOARD = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Measured:
    """What one file says: `ms` by stage, measured at `settings` behind `context` tokens.

    machine: for a person. board: which of the table it is, None for others.
    """

    path: Path
    settings: Settings
    context: int | None
    ms: dict[str, float]
    machine: str
    board: Board | None


def read_measured(path: Path, manifest: Manifest) -> Measured:
    """What the document of stc-bench at `path` says of the bundle of `manifest`.

    Raises SettingsError: it is no such document, it is of another bundle, or it has no times.
    """
    document: Any = parse_json(read_text(path, _FIX), str(path), _FIX)
    try:
        bundle, precision = document["bundle"], document["precision"]
        settings = Settings(**document["settings"])
        processor, backend = str(document["machine"]["processor"]), str(document["backend"])
        gpu = document.get("gpu") or {}
        name, told = str(gpu.get("name") or ""), str(gpu.get("board") or "")
        memory_bytes = int(gpu.get("memory_bytes") or 0)
        mode = str(gpu.get("power_mode") or "")
        weights, context = document["weights"], document.get("context")
        if context is not None:
            context = whole("context", context, least=1, most=MAX_POSITIONS)
        ms = _times(document, settings)
    except SettingsError as error:
        raise SettingsError(path, f"holds {error}", fix=_FIX) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(path, "no document of stc-bench", fix=_FIX) from error
    made = manifest.provenance
    if (bundle, precision) != (made.checkpoint, made.precision) or weights is not None:
        got = f"measured on {shown(bundle)}, {shown(precision)}, weights {shown(weights)}"
        expected = f"{made.checkpoint}, {made.precision}, its own weights"
        raise SettingsError(path, got, expected, "run stc-bench on this bundle")
    if not ms:
        raise SettingsError(path, "no times of a frame or a token", fix=_FIX)
    board = known_board(name, told, memory_bytes, mode) if backend in _SAME_BOARD else None
    machine = f"{name or processor}, {backend}"
    return Measured(path, settings, context, ms, machine, board)


def _times(document: Any, settings: Settings) -> dict[str, float]:
    fields = {
        REFERENCE: "reference_ms_p50",
        reuse_stage(settings.selection): "reuse_ms_p50",
        PREFILL: "prefill_preset_ms_p50",
        PREFILL_ALL: "prefill_keep_all_ms_p50",
        TOKEN: "decode_ms_p50",
    }
    found = {stage: document.get(field) for stage, field in fields.items()}
    times = {stage: float(ms) for stage, ms in found.items() if ms is not None}
    if any(not 0 < ms < 1e9 for ms in times.values()):
        raise ValueError("a time that is none")
    return times


def calibrating_board(measured: Sequence[Measured]) -> Board | None:
    """The board of the table that was `measured`; None when none of them was.

    Raises SettingsError when two were: which one's shares others have is not known.
    """
    boards = {one.board.name: one.board for one in measured if one.board is not None}
    if len(boards) > 1:
        got = f"measured on {' and '.join(boards)}"
        raise SettingsError("--calibrate", got, "one board", "name the files of one of them")
    return next(iter(boards.values()), None)


_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Fit(Generic[_Key]):
    """factors: those found. fitted_ms: the estimates with them, beside measured_ms, by stage."""

    factors: Factors
    measured_ms: dict[_Key, float]
    fitted_ms: dict[_Key, float]

    @property
    def errors(self) -> dict[_Key, float]:
        """By how much each estimate is off, as a share of what was measured."""
        return {stage: self.fitted_ms[stage] / ms - 1 for stage, ms in self.measured_ms.items()}

    @property
    def error(self) -> float:
        """The mean of those, whichever way."""
        return float(np.mean([abs(error) for error in self.errors.values()]))


def fit(
    measured_ms: Mapping[_Key, float], estimates: Mapping[_Key, Estimate], start: Factors
) -> Fit[_Key]:
    """The shares of peak and bandwidth under which `estimates` are nearest to `measured_ms`, in the
    mean square of their logarithms; all else is as in `start`.

    A search on a grid that is made finer and finer around the best.
    """
    low, high = np.log([_LEAST, _LEAST]), np.log([1.0, 1.0])
    best = start
    for _ in range(_ROUNDS):
        axes = [np.linspace(low[axis], high[axis], _STEPS) for axis in range(2)]
        best = _best(axes, measured_ms, estimates, start)
        centre = np.log([best.compute_efficiency, best.bandwidth_efficiency])
        reach = 2 * (high - low) / (_STEPS - 1)
        low = np.maximum(centre - reach, np.log(_LEAST))
        high = np.minimum(centre + reach, 0.0)
    fitted = {stage: estimates[stage](best) for stage in measured_ms}
    return Fit(best, dict(measured_ms), fitted)


def _best(
    axes: Sequence[Any],
    measured_ms: Mapping[_Key, float],
    estimates: Mapping[_Key, Estimate],
    start: Factors,
) -> Factors:
    def loss(factors: Factors) -> float:
        off = [np.log(estimates[stage](factors) / ms) ** 2 for stage, ms in measured_ms.items()]
        apart = np.log(factors.compute_efficiency / factors.bandwidth_efficiency) ** 2
        return float(np.mean(off) + _PULL * apart)

    tried = (
        replace(start, compute_efficiency=float(np.exp(a)), bandwidth_efficiency=float(np.exp(b)))
        for a in axes[0]
        for b in axes[1]
    )
    return min(tried, key=loss)
