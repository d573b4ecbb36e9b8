"""`stc-doctor`: what is installed here, what is missing or too old, and how to fix it."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import stc
from stc import optional
from stc.bundles.bundle import Bundle
from stc.engines.build.build import this_target
from stc.engines.gpu.cuda import (
    DeviceFacts,
    available_host_bytes,
    device_facts,
    load_cuda,
    stated_bytes,
)
from stc.engines.library.plan import context_rows
from stc.engines.library.targets import FLAVOURS, GIB, Flavour, load_tensorrt, targets_of
from stc.engines.open_tensorrt import built_target, check_memory, find_engines, refusal
from stc.errors import BundleError, DeviceError, EngineError, SettingsError, StcError
from stc.method.graphs import prune_graph
from stc.runtime.figures.machine import power_mode
from stc.shell import command
from stc.shell.command import Console

SMALL_BOARD_BYTES = 8.5 * GIB
"""Boards up to here need swap to build and to run a language model beside a camera."""

ADD_SWAP = (
    "sudo fallocate -l 8G /var/swapfile && sudo chmod 600 /var/swapfile "
    "&& sudo mkswap /var/swapfile && sudo swapon /var/swapfile"
)

BASE = ("numpy", "pydantic", "rich")
VIDEO = "pip install 'stc[video]'"
LANGUAGE = "pip install 'stc[language]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 when stc-run would run here, 1 when it would not.

    With a bundle, when it would run that.
    """
    return command.run(lambda: _doctor(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-doctor", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="look at it as well")
    parser.add_argument(
        "--verify", action="store_true", help="hash every file of the bundle, known or not"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    return parser.parse_args(arguments)


def _doctor(flags: argparse.Namespace) -> int:
    if flags.verify and flags.bundle is None:
        raise SettingsError("--verify", "no bundle", "stc-doctor --verify BUNDLE")
    diagnosis = diagnose(flags.bundle, verify=flags.verify)
    if flags.json:
        print(json.dumps(asdict(diagnosis)))
    else:
        _show(diagnosis)
    return 0 if diagnosis.backends else 1


def _show(diagnosis: Diagnosis) -> None:
    console = Console()
    for finding in sorted(diagnosis.findings, key=lambda finding: finding.optional):
        sign = "ok" if finding.fine else "optional" if finding.optional else "to fix"
        console.say(f"{sign:<8}  {finding.subject}: {finding.found}")
        if finding.optional:
            console.say(f"          for {finding.needed_for}: {finding.fix}")
        elif not finding.fine:
            needed = f" (for {finding.needed_for})" if finding.needed_for else ""
            console.say(f"          fix: {finding.fix}{needed}")
    console.say(diagnosis.verdict)


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    subject: what; found: what was seen of it; fix: the command that fixes it, "" where nothing
    is to be done. needed_for: what does not work without it. vital: stc-run cannot do without it.
    optional: it is not here, and need not be where nobody wants what it is needed for.
    """

    subject: str
    found: str
    fix: str = ""
    needed_for: str = ""
    vital: bool = False
    optional: bool = False

    @property
    def fine(self) -> bool:
        """Whether nothing is to be done."""
        return not self.fix


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the backends with which stc-run can run a bundle here.

    Of the bundle that was looked at, if one was; it names no backend where something vital lacks.
    verdict: with what can be run, or why nothing can, in one line.
    """

    findings: list[Finding]
    backends: list[str]
    verdict: str


def diagnose(
    bundle: Path | None = None, system: Path = Path("/"), *, verify: bool = False
) -> Diagnosis:
    """What this machine has and lacks; with `bundle`, whether that can be run.

    `verify` hashes every file of the bundle. `system` is where the system's files stand. Nothing
    of either is changed.
    """
    cuda, device = _gpu()
    flavours = [_flavour(flavour, device) for flavour in FLAVOURS]
    needed = "--backend onnxruntime, and accepting engines"
    installs = "pip install onnxruntime"
    runtime = _package("onnxruntime", "onnxruntime", "onnxruntime", installs, needed)
    if runtime.fine:
        providers = importlib.import_module("onnxruntime").get_available_providers()
        shown = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
        runtime = replace(runtime, found=f"{runtime.found}, {shown}")
    findings = [
        Finding("Python", platform.python_version()),
        Finding("stc", stc.__version__),
        *(_package(name, name, name, "pip install stc", "stc", vital=True) for name in BASE),
        *_board(system, device),
        cuda,
        *(finding for finding, _ in flavours),
        _package("polygraphy", "polygraphy", "polygraphy", "pip install polygraphy", "stc-build"),
        runtime,
        _package("av", "av", "video (PyAV)", VIDEO, "stc-run --video", vital=True),
        _package("PIL.Image", "pillow", "pictures (Pillow)", VIDEO, "preparing frames", vital=True),
        _cameras(system),
        _package("tokenizers", "tokenizers", "tokenizers", LANGUAGE, "stc-run --ask"),
        _package("jinja2", "jinja2", "chat templates", LANGUAGE, "stc-run --ask"),
    ]
    backends = ["onnxruntime"] if runtime.fine else []
    backends += [flavour for flavour, (_, usable) in zip(FLAVOURS, flavours, strict=True) if usable]
    if not backends:  # it is the quickest to install
        findings[findings.index(runtime)] = replace(runtime, optional=False)
    missing = [finding.subject for finding in findings if finding.vital and not finding.fine]
    missing += [] if backends else ["a backend (onnxruntime is the quickest to install)"]
    found, unusable = _bundle(bundle, verify, backends, device) if bundle is not None else ([], ())
    wrong = [finding for finding in found if not finding.fine]
    damaged = any(finding.vital for finding in wrong)
    runs = [] if missing or damaged else [one for one in backends if one not in unusable]
    return Diagnosis([*findings, *found], runs, _verdict(bundle, runs, missing, wrong))


def _verdict(bundle: Path | None, runs: list[str], missing: list[str], wrong: list[Finding]) -> str:
    if missing:
        return f"nothing can be run here yet; missing: {', '.join(missing)}"
    if runs:
        return f"{bundle or 'bundles'} can be run here with: {', '.join(runs)}"
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{bundle} cannot be run here: {wrong[0].found}{more}"


def _gpu() -> tuple[Finding, DeviceFacts | None]:
    subject, needed = "GPU", "--backend tensorrt"
    try:
        device = device_facts(load_cuda())
    except DeviceError as error:
        fix = error.fix or "install or update the NVIDIA driver"
        return Finding(subject, error.got, fix, needed, optional=True), None
    except EngineError as error:
        return _unloaded(subject, error, needed), None
    capability = "{}.{}".format(*device.compute_capability)
    found = (
        f"{device.name}, compute capability {capability}, "
        f"{device.free_bytes / GIB:.1f} of {device.total_bytes / GIB:.1f} GiB free"
    )
    try:
        return Finding(subject, f"{found}, target {this_target(device).name}"), device
    except EngineError as error:
        return Finding(subject, found, str(error), needed), device


def _flavour(flavour: Flavour, device: DeviceFacts | None) -> tuple[Finding, bool]:
    """The flavour, and whether it can run engines here."""
    needed = f"--backend {flavour}"
    try:
        tensorrt = load_tensorrt(flavour)
    except EngineError as error:
        alike = targets_of(device.compute_capability) if device is not None else []
        if flavour == "tensorrt-rtx" and alike and not any(target.rtx for target in alike):
            return Finding(flavour, "not installed; it does not run on this GPU"), False
        return _unloaded(flavour, error, needed), False
    profiles = "" if tensorrt.several_profiles else ", one engine per size (before 10.8)"
    if device is None:
        return Finding(flavour, f"{tensorrt.version}{profiles}, no GPU to run on"), False
    try:
        target = this_target(device)
    except EngineError:
        return Finding(flavour, f"{tensorrt.version}, this GPU is no target"), False
    if flavour == "tensorrt-rtx" and not target.rtx:
        return Finding(flavour, f"{tensorrt.version}, does not run on {target.name}"), False
    return Finding(flavour, f"{tensorrt.version}{profiles}"), True


def _package(
    module: str, package: str, subject: str, fix: str, needed_for: str, *, vital: bool = False
) -> Finding:
    """`module` of the pip package `package`: its version, or why it cannot be used."""
    try:
        found = optional.load(module, package, subject=subject, fix=fix)
    except EngineError as error:
        return _unloaded(subject, error, needed_for, vital=vital)
    return Finding(subject, optional.version_of(found, package), vital=vital)


def _unloaded(subject: str, error: EngineError, needed_for: str, *, vital: bool = False) -> Finding:
    """What `optional.load` refused with `error`: it may stay out, but not be there and broken."""
    absent = isinstance(error.__cause__, ModuleNotFoundError)
    return Finding(subject, error.got, error.fix, needed_for, vital, absent and not vital)


def _cameras(system: Path) -> Finding:
    cameras = sorted(str(path) for path in (system / "dev").glob("video*"))
    return Finding("cameras", ", ".join(cameras) or "none; files and network streams can be run")


def _board(system: Path, device: DeviceFacts | None) -> list[Finding]:
    """What only a Jetson has: its release, its power mode, and enough swap on a small board."""
    findings = []
    release = system / "etc/nv_tegra_release"
    if release.exists():
        findings.append(Finding("Jetson Linux", release.read_text().splitlines()[0].strip("# ")))
    if device is not None and device.board:
        found = power_mode() or "unknown"
        fastest = 2 if "Orin Nano" in device.board else 0
        held_back = not found.startswith("MAXN") and found != "unknown"
        fix = f"sudo nvpmodel -m {fastest}" if held_back else ""
        findings.append(Finding("power mode", found, fix, "full speed"))
    if device is not None and device.unified and device.total_bytes <= SMALL_BOARD_BYTES:
        swap_bytes = stated_bytes(system / "proc/meminfo", "SwapTotal")
        found = f"{swap_bytes / GIB:.1f} GiB, {available_host_bytes() / GIB:.1f} GiB of memory free"
        fix = "" if swap_bytes >= 4 * GIB else ADD_SWAP
        findings.append(Finding("swap", found, fix, "building on a board of 8 GB"))
    return findings


def _bundle(
    path: Path, verify: bool, backends: list[str], device: DeviceFacts | None
) -> tuple[list[Finding], set[Flavour]]:
    """The bundle, for every flavour that runs here its engines, and the flavours that lack them."""
    try:
        bundle = Bundle.open(path, whole=not verify)
        wrong = list(bundle.files.mismatches()) if verify else []
    except BundleError as error:
        wrong = [error]
    if wrong:
        return [_damage(error, path) for error in wrong], set()
    made = bundle.manifest.provenance
    verified = f", {len(bundle.files.sizes)} files as their digests say" if verify else ""
    findings = [Finding("bundle", f"{made.checkpoint}, {made.precision}{verified}")]
    unusable: set[Flavour] = set()
    for flavour in FLAVOURS:
        if flavour not in backends or device is None:
            continue
        subject = f"engines, {flavour}"
        try:
            asks = bundle.manifest.language is not None
            target = built_target(bundle, device)
            _, entries = find_engines(
                bundle, load_tensorrt(flavour), target, language=asks, device=device.name
            )
            for entry in entries.get(prune_graph(bundle.manifest.default_settings.pruner), ()):
                if (strays := refusal(bundle, entry, device.name)) is not None:
                    raise strays
            context = context_rows(None) if asks else 0
            fits = check_memory(bundle, entries, device, context=context, streams=1)
            findings.append(Finding(subject, fits))
        except StcError as error:
            fix = error.fix or "build again with stc-build"
            findings.append(Finding(subject, error.got, fix, f"--backend {flavour}"))
            unusable.add(flavour)
    return findings, unusable


def _damage(error: BundleError, path: Path) -> Finding:
    fix = error.fix or "export it again with stc-export"
    got = f"{error.got}, expected {error.expected}" if error.expected else error.got
    found = got if str(error.subject) == str(path) else f"{error.subject}: {got}"
    return Finding("bundle", found, fix, "running it", vital=True)


if __name__ == "__main__":
    sys.exit(main())
