"""`stc-plan`: what a bundle costs on a GPU that is not here, by what the compiler says of it.

Every engine that a stream runs is compiled and thrown away, and the compiler's own list of layers
is read: kernels, bytes, weights, scratch memory, whether attention is one kernel. From these a
roofline estimates times and streams for every board of the targets. TensorRT-RTX needs no GPU for
it; for Orin, which it does not know, its list for sm86 is read unless native TensorRT is here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

from stc import settings
from stc.bundles.bundle import Bundle
from stc.engines.build.build import check_precision
from stc.engines.build.builders import BuildProgress
from stc.engines.build.listing import find_compiler
from stc.engines.build.roofline import FITTED, Factors
from stc.engines.gpu.cuda import found_device
from stc.engines.library.boards import boards_of
from stc.engines.library.plan import CONTEXTS, window_of
from stc.engines.library.targets import FLAVOURS, JOINED, TARGETS, parse_targets
from stc.errors import SettingsError
from stc.manifest import MAX_POSITIONS
from stc.runtime.output import document_output, refuse_shared_paths, text_output
from stc.runtime.planning.calibration import read_measured
from stc.runtime.planning.picture import picture
from stc.runtime.planning.plan import Wanted, make_plan
from stc.runtime.planning.show import print_plan
from stc.shell import command
from stc.shell.command import Console
from stc.shell.ranges import number_flag, real, whole_flag

CONTEXT = window_of(CONTEXTS[0])
"""Tokens remembered before the frame and the token that are counted: the most that engines of the
shorter context take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command.run(lambda: _plan(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-plan", description=__doc__)
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="directory of stc-export, in float16")
    names = ", ".join(TARGETS)
    add(
        "--target",
        nargs="+",
        required=True,
        metavar="T",
        help=f"GPUs: {names}; several may be named, or joined by {JOINED}",
    )
    add("--backend", choices=FLAVOURS, help="whose compiler, default: what is here and fits")
    add(
        "--context",
        type=whole_flag(1, MAX_POSITIONS),
        default=CONTEXT,
        metavar="S",
        help=f"tokens remembered before a frame or a question, default {CONTEXT}",
    )
    add(
        "--json",
        metavar="OUT",
        help="write the figures to a file, or - for the last line of stdout",
    )
    add("--picture", metavar="OUT.svg", help="write a bar for every board and stage")
    add(
        "--calibrate",
        type=Path,
        action="append",
        metavar="FILE",
        help="fit both efficiencies to times of stc-bench --json; may be given again",
    )
    group = parser.add_argument_group("roofline", "What estimates assume of every board.")
    helps = {
        "compute_efficiency": ("E", "share of the peak that kernels reach, 0 < E <= 1"),
        "bandwidth_efficiency": ("E", "share of the memory's bandwidth, 0 < E <= 1"),
        "kernel_us": ("US", "microseconds that a kernel costs besides"),
        "host_call_us": ("US", "microseconds of a call of the host outside of a CUDA graph"),
    }
    for one in fields(Factors):
        metavar, told = helps[one.name]
        group.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=number_flag,
            metavar=metavar,
            help=f"{told}, default {one.default:g}",
        )
    settings.add_flags(parser)
    return parser.parse_args(arguments)


def _plan(flags: argparse.Namespace) -> int:
    factors = _factors(flags)
    targets = parse_targets(JOINED.join(flags.target), this_device=False)
    for target in targets:
        boards_of(target)  # to refuse early
    outputs = {"--json": flags.json, "--picture": flags.picture}
    inputs = {"--calibrate": flags.calibrate or []}
    refuse_shared_paths(outputs, video=None, bundle=flags.bundle, inputs=inputs)
    bundle = Bundle.open(flags.bundle)
    check_precision(bundle, targets)
    manifest = bundle.manifest
    chosen = settings.from_flags(flags, manifest.default_settings, manifest.vision.pooled)
    measured = [read_measured(path, manifest) for path in flags.calibrate or ()]
    wanted = Wanted(chosen, flags.context, factors, measured)
    device, why_not = found_device()
    say = Console(stderr=True).say
    compilers = [find_compiler(one, flags.backend, device, why_not, say) for one in targets]
    with document_output(flags.json) as write, ExitStack() as stack:
        draw = None
        if flags.picture is not None:
            draw = stack.enter_context(text_output("--picture", flags.picture))
        with command.unmasked_stops():
            document = make_plan(bundle, wanted, compilers, _progress)
        print_plan(Console(), document)
        if draw is not None:
            draw(picture(document))
        write(document)
    return 0


def _progress(engines: int) -> BuildProgress:
    return BuildProgress(engines, Console(stderr=True))


def _factors(flags: argparse.Namespace) -> Factors:
    """Raises SettingsError for one out of range, or that --calibrate would find."""
    given = {}
    for one in fields(Factors):
        value = getattr(flags, one.name)
        if value is None:
            continue
        flag = f"--{one.name.replace('_', '-')}"
        if one.name in FITTED:
            if flags.calibrate:
                raise SettingsError(
                    flag, "cannot be combined with --calibrate, which finds it", fix="leave one out"
                )
            given[one.name] = real(flag, value, "0 < E <= 1", above=0.0, most=1.0)
        else:
            given[one.name] = real(flag, value, "a finite number, 0 or more", least=0.0)
    return Factors(**given)


if __name__ == "__main__":
    sys.exit(main())
