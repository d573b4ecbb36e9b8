"""What is installed on this machine, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import stc
from stc.bundle import Bundle
from stc.contracts import prune_graph
from stc.engines.build_target import this_target
from stc.engines.cuda import DeviceFacts, available_host_bytes, device_facts, load_cuda
from stc.engines.flavour import FLAVOURS, Flavour, load_tensorrt
from stc.engines.open_tensorrt import built_target, check_memory
from stc.engines.plan import context_rows
from stc.engines.targets import GIB, targets_of
from stc.engines.usable_engines import find_engines, refusal
from stc.errors import DeviceError, EngineError, StcError
from stc.runtime.gpu_facts import power_mode

SMALL_BOARD_BYTES = 8.5 * GIB
"""Boards up to here need swap to build and to run a language model beside a camera."""

ADD_SWAP = (
    "sudo fallocate -l 8G /var/swapfile && sudo chmod 600 /var/swapfile "
    "&& sudo mkswap /var/swapfile && sudo swapon /var/swapfile"
)

SYSTEM = Path("/")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    subject: what; found: what was seen of it; mend: the command that mends it, "" where nothing
    is to be done. needed_for: what does not work without it.
    """

    subject: str
    found: str
    mend: str = ""
    needed_for: str = ""

    @property
    def fine(self) -> bool:
        """Whether nothing is to be done."""
        return not self.mend


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and the backends that can run a bundle here."""

    findings: list[Finding]
    backends: list[str]


def diagnose(bundle: Path | None = None, system: Path = SYSTEM) -> Diagnosis:
    """What this machine has and lacks; with `bundle`, whether its engines can be used.

    `system` is where the system's files stand. Nothing is changed.
    """
    cuda, device = _gpu()
    flavours = [_flavour(flavour, device) for flavour in FLAVOURS]
    runtime, onnxruntime = _onnxruntime()
    findings = [
        Finding("Python", platform.python_version()),
        Finding("stc", stc.__version__),
        *_board(system, device),
        cuda,
        *(finding for finding, _ in flavours),
        _package("polygraphy", "polygraphy", "pip install polygraphy", "stc-build"),
        runtime,
        _package("av", "video (PyAV)", "pip install 'stc[video]'", "stc-run --video"),
        _package("PIL", "pictures (Pillow)", "pip install 'stc[video]'", "preparing frames"),
        _cameras(system),
        _package("tokenizers", "tokenizers", "pip install 'stc[language]'", "stc-run --ask"),
        _package("jinja2", "chat templates", "pip install 'stc[language]'", "stc-run --ask"),
    ]
    backends = ["onnxruntime"] if onnxruntime else []
    backends += [flavour for flavour, (_, usable) in zip(FLAVOURS, flavours, strict=True) if usable]
    if bundle is not None:
        findings += _bundle(bundle, backends, device)
    return Diagnosis(findings, backends)


def _gpu() -> tuple[Finding, DeviceFacts | None]:
    """The GPU as CUDA tells of it."""
    subject, needed = "GPU", "--backend tensorrt"
    try:
        device = device_facts(load_cuda())
    except DeviceError as error:
        mend = error.mend or "install or update the NVIDIA driver"
        mend = f"nothing to do where there is no NVIDIA GPU; else {mend}"
        return Finding(subject, error.got, mend, needed), None
    except EngineError as error:
        return Finding(subject, error.got, error.mend, needed), None
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
        return Finding(flavour, error.got, error.mend, needed), False
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


def _onnxruntime() -> tuple[Finding, bool]:
    """ONNX Runtime, and whether it is there."""
    needed = "--backend onnxruntime, and accepting engines"
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        return Finding("onnxruntime", str(error), "pip install onnxruntime", needed), False
    providers = ", ".join(
        name.removesuffix("ExecutionProvider") for name in _providers(onnxruntime)
    )
    return Finding("onnxruntime", f"{onnxruntime.__version__}, {providers}"), True


def _providers(onnxruntime: object) -> list[str]:
    asked: Callable[[], list[str]] = onnxruntime.get_available_providers  # type: ignore[attr-defined]
    return asked()


def _package(module: str, subject: str, mend: str, needed_for: str) -> Finding:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        return Finding(subject, str(error), mend, needed_for)
    version = getattr(found, "__version__", None)
    return Finding(subject, str(version) if version else metadata.version(module))


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
        mend = f"sudo nvpmodel -m {fastest}" if held_back else ""
        findings.append(Finding("power mode", found, mend, "full speed"))
    if device is not None and device.unified and device.total_bytes <= SMALL_BOARD_BYTES:
        swap_bytes = _swap_bytes(system)
        found = f"{swap_bytes / GIB:.1f} GiB, {available_host_bytes() / GIB:.1f} GiB of memory free"
        mend = "" if swap_bytes >= 4 * GIB else ADD_SWAP
        findings.append(Finding("swap", found, mend, "building on a board of 8 GB"))
    return findings


def _swap_bytes(system: Path) -> int:
    for line in (system / "proc/meminfo").read_text().splitlines():
        if line.startswith("SwapTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _bundle(path: Path, backends: list[str], device: DeviceFacts | None) -> list[Finding]:
    """The bundle, and for every flavour that runs here its engines."""
    try:
        bundle = Bundle.open(path)
    except StcError as error:
        return [Finding("bundle", error.got, error.mend or "export it again with stc-export")]
    made = bundle.manifest.provenance
    findings = [Finding("bundle", f"{made.checkpoint}, {made.precision}")]
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
            mend = error.mend or "build again with stc-build"
            findings.append(Finding(subject, error.got, mend, f"--backend {flavour}"))
    return findings
