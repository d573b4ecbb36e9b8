"""`stc-build`: a bundle's graphs become engines for a GPU."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from stc.bundles.bundle import Bundle
from stc.contracts import attend_graph
from stc.engines.accept.acceptance import accept_here, waiting
from stc.engines.build.build import (
    BuildPlan,
    check_native,
    check_precision,
    choose_flavour,
    default_workers,
    may_be,
    plan_build,
    run_build,
    this_target,
)
from stc.engines.build.builders import BuildProgress
from stc.engines.build.costs import cost_lines
from stc.engines.build.listing import find_compiler
from stc.engines.gpu.cuda import DeviceFacts, found_device, load_cuda
from stc.engines.library.library import EngineLibrary
from stc.engines.library.plan import CONTEXTS, EngineSpec, choose_buckets, plan_engines
from stc.engines.library.preflight import Demand, check_fits, copies_of, told_elsewhere
from stc.engines.library.targets import (
    FLAVOURS,
    JOINED,
    TARGETS,
    THIS_DEVICE,
    Target,
    TensorRt,
    joined_name,
    parse_targets,
)
from stc.errors import EngineError, SettingsError
from stc.method.graphs import update_graph
from stc.settings import Settings
from stc.shell import command
from stc.shell.command import Console, tell
from stc.shell.ranges import number_flag, whole_flag

MAX_JOBS = 1_000
"""Builders at once that no machine has memory for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Ctrl-C keeps the engines that are finished."""
    return command.run(lambda: _build(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-build", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory of stc-export")
    parser.add_argument(
        "--target",
        required=True,
        metavar="T",
        help=f"{THIS_DEVICE}, {', '.join(TARGETS)}, or several joined by {JOINED}",
    )
    parser.add_argument("--backend", choices=FLAVOURS, help="default: what is installed and fits")
    parser.add_argument(
        "--recompute-ratio",
        type=number_flag,
        action="append",
        metavar="R",
        help="build for this ratio; may be given again (default: the bundle's and the target's)",
    )
    parser.add_argument(
        "--budget",
        type=whole_flag(),
        action="append",
        metavar="K",
        help="build for this budget; may be given again (default: the bundle's and all presets')",
    )
    parser.add_argument(
        "--jobs",
        type=whole_flag(1, MAX_JOBS),
        metavar="N",
        help="builders at once (default: by memory; native TensorRT takes one)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what frames and a call of the decoder cost, by the compiler's list of layers",
    )
    return parser.parse_args(arguments)


def _build(flags: argparse.Namespace) -> int:
    start = time.perf_counter()
    device, why_not = _device()
    targets = _targets(flags.target, device, why_not)
    bundle = Bundle.open(flags.bundle)
    check_precision(bundle, targets)
    tensorrt = choose_flavour(targets, flags.backend)
    if tensorrt.flavour == "tensorrt":
        check_native(tensorrt, targets, device, why_not)
        if flags.jobs is not None and flags.jobs > 1:
            got = f"got {flags.jobs} with native TensorRT, which times kernels and must be alone"
            raise SettingsError("--jobs", got, "1", "leave it out")
    default = bundle.manifest.default_settings.recompute_ratio
    ratios = flags.recompute_ratio or [
        default,
        *(ratio for target in targets for ratio in target.recompute_ratios),
    ]
    budgets = None if flags.budget is None else tuple(flags.budget)
    buckets = choose_buckets(bundle.manifest, tuple(ratios), budgets)
    specs = plan_engines(bundle.manifest, buckets, several_profiles=tensorrt.several_profiles)
    plan = plan_build(bundle, specs, tensorrt, targets)
    what = f"{tensorrt.flavour} {tensorrt.version}, {joined_name(targets)}"
    console = Console(stderr=True)
    try:
        with command.unmasked_stops():
            if plan.missing or plan.dead:
                built = _build_missing(
                    flags, bundle, plan, tensorrt, targets, device, specs, console
                )
                took = f", {time.perf_counter() - start:.1f} s"
            else:
                built = f"{plan.library.folder}: all {plan.present} engines are there already"
                took = ""
            tell(f"{built}{took} ({what})")
            code = _accept(bundle, plan.library, tensorrt, targets, device, console)
            if flags.plan:
                compilers = [
                    find_compiler(one, tensorrt.flavour, device, why_not, console.say)
                    for one in targets
                ]
                progress = partial(BuildProgress, console=console)
                settings = _settings(bundle, flags)
                for line in cost_lines(bundle, specs, settings, compilers, progress):
                    tell(line)
            return code
    except KeyboardInterrupt:
        print("interrupted; finished engines are kept, run it again to go on", file=sys.stderr)
        return 130


def _settings(bundle: Bundle, flags: argparse.Namespace) -> Settings:
    """The bundle's own settings, but for a ratio and a budget that engines were asked for: the
    first of each."""
    asked = {"recompute_ratio": flags.recompute_ratio, "budget": flags.budget}
    given = {name: values[0] for name, values in asked.items() if values}
    return replace(bundle.manifest.default_settings, **given)


def _build_missing(
    flags: argparse.Namespace,
    bundle: Bundle,
    plan: BuildPlan,
    tensorrt: TensorRt,
    targets: tuple[Target, ...],
    device: DeviceFacts | None,
    specs: Sequence[EngineSpec],
    console: Console,
) -> str:
    """What was built, for a person."""
    demand = Demand(
        manifest=bundle.manifest,
        context=CONTEXTS[-1] if bundle.manifest.language is not None else 0,
        update_copies=copies_of(update_graph(0), specs),
        language_copies=copies_of(attend_graph(0), specs),
    )
    for target in targets:
        if device is not None and may_be(device, target):
            line = check_fits(demand, target.name, device.free_bytes)
        else:
            line = told_elsewhere(demand, target.name, target.memory_bytes)
        console.say(line)
    if plan.present:
        whole = plan.present + len(plan.missing)
        console.say(f"goes on: {plan.present} of {whole} engines are there")
    workers = flags.jobs or default_workers(tensorrt.flavour)
    with BuildProgress(len(plan.missing), console) as progress:
        figures = run_build(bundle, plan, tensorrt.flavour, targets, progress, workers=workers)
    return (
        f"{plan.library.folder}: {figures.engines} engines built, {plan.present} were there, "
        f"{figures.size_bytes / 1e6:,.0f} MB, "
        f"builders of at most {figures.peak_rss_bytes / 1e6:,.0f} MB"
    )


def _accept(
    bundle: Bundle,
    library: EngineLibrary,
    tensorrt: TensorRt,
    targets: tuple[Target, ...],
    device: DeviceFacts | None,
    console: Console,
) -> int:
    """0 when every engine is accepted, or cannot be judged on this machine, which is said."""
    here = device if device is not None and any(may_be(device, one) for one in targets) else None
    if not waiting(library, tensorrt, here.name if here is not None else None):
        return 0
    if here is None:
        tell(
            f"not compared with ONNX Runtime: this machine is no {joined_name(targets)}; "
            "run the same command on the device"
        )
        return 0
    with BuildProgress(len(bundle.manifest.graphs), console) as progress:
        report = accept_here(bundle, library, tensorrt, targets, load_cuda(), progress, console.say)
    for name, one in report.rebuilt.items():
        tell(
            f"{name}: rebuilt with {one.attention} attention, "
            f"cosine {one.before:.4f} -> {one.after:.4f}"
        )
    for name, cosine in report.refused.items():
        tell(f"{name}: REFUSED, cosine {cosine:.4f} to ONNX Runtime")
    verdict = "accepted" if report.passed else "NOT accepted"
    tell(
        f"{report.compared} engines compared with ONNX Runtime on {here.name}: "
        f"{verdict}, end to end cosine {report.chain_cosine:.4f}"
    )
    return 0 if report.passed else 1


def _device() -> tuple[DeviceFacts | None, str]:
    return found_device(load_cuda)


def _targets(names: str, device: DeviceFacts | None, why_not: str) -> tuple[Target, ...]:
    if names != THIS_DEVICE:
        return parse_targets(names)
    if device is None:
        raise EngineError(
            f"--target {THIS_DEVICE}",
            f"no GPU can be used here ({why_not})",
            "",
            "name the target: --target sm89, ...",
        )
    return (this_target(device),)


if __name__ == "__main__":
    sys.exit(main())
