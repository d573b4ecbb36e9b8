"""A bundle on targets that are not here: stages counted, engines listed, boards estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from stc.bundles.bundle import Bundle
from stc.contracts import attend_graph
from stc.engines.build.builders import BuildProgress
from stc.engines.build.listing import Compiler, engines_to_list, list_engines
from stc.engines.build.roofline import Factors
from stc.engines.library.boards import Board, boards_of
from stc.engines.library.plan import CONTEXTS, EngineSpec, choose_buckets, plan_engines
from stc.engines.library.preflight import Demand, copies_of
from stc.method.graphs import update_graph
from stc.runtime.planning.calibration import Fit, Measured, calibrating_board, fit
from stc.runtime.planning.estimate import (
    Estimate,
    Figures,
    Planned,
    board_figures,
    engine_figures,
    stage_figures,
)
from stc.runtime.planning.stages import (
    PREFILL,
    PREFILL_ALL,
    TOKEN,
    Stage,
    frame_stages,
    language_stages,
)
from stc.settings import Settings

_LANGUAGE = (PREFILL, PREFILL_ALL, TOKEN)


@dataclass(frozen=True)
class Wanted:
    """What is planned for: a stream of `settings` that remembers `context` tokens.

    measured: times to calibrate by; factors: what holds without.
    """

    settings: Settings
    context: int
    factors: Factors
    measured: Sequence[Measured] = ()


def make_plan(
    bundle: Bundle,
    wanted: Wanted,
    compilers: Sequence[Compiler],
    progress: Callable[[int], BuildProgress],
) -> Figures:
    """The document of stc-plan. `progress` is told how many engines are to be compiled.

    Raises EngineError for a target without a known board and for what cannot be compiled,
    SettingsError for a context the model has no positions for, and for times of two boards.
    """
    calibrating = calibrating_board(wanted.measured)
    boards = {one.target.name: boards_of(one.target) for one in compilers}
    specs = _specs(bundle, wanted, all(one.tensorrt.several_profiles for one in compilers))
    stages = _stages(bundle, specs, wanted.settings, wanted.context)
    others = [_measured_stages(bundle, specs, one) for one in wanted.measured]
    every = (stage for some in (stages, *others) for stage in some.values())
    calls = [call for stage in every for call in stage.calls]
    with progress(engines_to_list(bundle, calls, specs, compilers)) as shown:
        listed = list_engines(bundle, calls, specs, compilers, shown)
    planned = {
        one.target.name: Planned(one, listed[one.target.name], boards[one.target.name])
        for one in compilers
    }
    factors, calibration = _calibrated(wanted, others, planned, calibrating)
    manifest = bundle.manifest
    return {
        "bundle": manifest.provenance.checkpoint,
        "precision": manifest.provenance.precision,
        "settings": asdict(wanted.settings),
        "kept": wanted.settings.kept(manifest.vision.pooled),
        "context": wanted.context,
        "factors": asdict(factors),
        "times": "estimates by a roofline, not measured",
        "calibration": calibration,
        "targets": {
            name: _target(one, stages, factors, wanted.settings, _needed_bytes(bundle, wanted, one))
            for name, one in planned.items()
        },
    }


def _specs(bundle: Bundle, wanted: Wanted, several_profiles: bool) -> list[EngineSpec]:
    """The engines of every setting that is counted."""
    every = (wanted.settings, *(one.settings for one in wanted.measured))
    ratios = tuple(one.recompute_ratio for one in every)
    buckets = choose_buckets(bundle.manifest, ratios, tuple(one.budget for one in every))
    return plan_engines(bundle.manifest, buckets, several_profiles=several_profiles)


def _stages(
    bundle: Bundle, specs: Sequence[EngineSpec], settings: Settings, context: int
) -> dict[str, Stage]:
    kept = settings.kept(bundle.manifest.vision.pooled)
    frames = frame_stages(bundle, specs, settings)
    return frames | language_stages(bundle, specs, kept, context)


def _measured_stages(
    bundle: Bundle, specs: Sequence[EngineSpec], one: Measured
) -> dict[str, Stage]:
    """The stages that were measured, as they were: of the language side those behind a context."""
    if one.context is None:
        found = frame_stages(bundle, specs, one.settings)
    else:
        kept = one.settings.kept(bundle.manifest.vision.pooled)
        found = language_stages(bundle, specs, kept, one.context)
    return {name: stage for name, stage in found.items() if name in one.ms}


def _calibrated(
    wanted: Wanted,
    stages: Sequence[Mapping[str, Stage]],
    planned: Mapping[str, Planned],
    calibrating: Board | None,
) -> tuple[Factors, list[Figures]]:
    """The factors that estimates are made with, and what is told of each file of times.

    All files of a machine have one fit, that of the board `calibrating` is used.
    """
    machines: dict[str, dict[int, Measured]] = {}
    for number, one in enumerate(wanted.measured):
        name = f"machine {one.machine}" if one.board is None else f"board {one.board.name}"
        machines.setdefault(name, {})[number] = one
    factors = wanted.factors
    told: dict[int, Figures] = {}
    for files in machines.values():
        board = next(iter(files.values())).board
        estimates = {
            (number, name): estimate
            for number in files
            for name, estimate in _estimates(stages[number], planned, board).items()
        }
        measured = {(number, name): files[number].ms[name] for number, name in estimates}
        fitted = fit(measured, estimates, wanted.factors)
        used = board is not None and board == calibrating
        if used:
            factors = fitted.factors
        of = board or _first(planned).boards[0]
        told |= {number: _told(one, fitted, number, of, used=used) for number, one in files.items()}
    return factors, [told[number] for number in range(len(told))]


def _first(planned: Mapping[str, Planned]) -> Planned:
    return next(iter(planned.values()))


def _estimates(
    stages: Mapping[str, Stage], planned: Mapping[str, Planned], board: Board | None
) -> dict[str, Estimate]:
    """Of `stages` on `board`, or on the first there is where they ran on another machine."""
    on = _first(planned)
    if board is not None:
        # Another target's list may differ; of the board's own target where that is planned for.
        on = planned.get(board.target, on)
    else:
        board = on.boards[0]
    return {
        name: on.stage_time(stage, board) if name in _LANGUAGE else on.tower_time(stage, board)
        for name, stage in stages.items()
    }


def _told(
    one: Measured, found: Fit[tuple[int, str]], number: int, board: Board, *, used: bool
) -> Figures:
    """What is told of file `number`, whose times are among those `found` fits."""
    errors = {name: error for (of, name), error in found.errors.items() if of == number}
    return {
        "file": str(one.path),
        "machine": one.machine,
        "board": board.name,
        "used": used,
        "compute_efficiency": found.factors.compute_efficiency,
        "bandwidth_efficiency": found.factors.bandwidth_efficiency,
        "error": sum(map(abs, errors.values())) / len(errors),
        "stages": {
            name: {
                "measured_ms": found.measured_ms[number, name],
                "fitted_ms": found.fitted_ms[number, name],
                "error": error,
            }
            for name, error in errors.items()
        },
    }


def _target(
    planned: Planned,
    stages: Mapping[str, Stage],
    factors: Factors,
    settings: Settings,
    needed_bytes: int,
) -> Figures:
    compiler = planned.compiler
    return {
        "compiler": f"{compiler.tensorrt.flavour} {compiler.tensorrt.version}",
        "compiled": compiler.compiled.name,
        "board": planned.boards[0].name,
        "engines": engine_figures(
            planned, (call for stage in stages.values() for call in stage.calls), factors
        ),
        **{name: stage_figures(planned, stage, factors) for name, stage in stages.items()},
        "boards": {
            board.name: board_figures(planned, board, stages, factors, settings, needed_bytes)
            for board in planned.boards
        },
    }


def _needed_bytes(bundle: Bundle, wanted: Wanted, planned: Planned) -> int:
    """Memory of one stream that can be asked, by the estimate that stc-build prints.

    Where another target's list stands in, the compiler of the target's own is not here: it counts
    as one of which every size holds the weights anew, as JetPack 6.2's.
    """
    compiler = planned.compiler
    own = compiler.compiled is compiler.target
    specs = _specs(bundle, replace(wanted, measured=()), own and compiler.tensorrt.several_profiles)
    return Demand(
        manifest=bundle.manifest,
        context=0 if bundle.manifest.language is None else CONTEXTS[-1],
        update_copies=copies_of(update_graph(0), specs),
        language_copies=copies_of(attend_graph(0), specs),
    ).total_bytes
