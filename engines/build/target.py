"""Can this machine build engines for these targets from this bundle? If not, one line says why."""

from __future__ import annotations

from stc.bundles.bundle import Bundle
from stc.engines.gpu.cuda import DeviceFacts
from stc.engines.library.flavour import FLAVOURS, Flavour, TensorRt, load_tensorrt, version_at_least
from stc.engines.library.targets import Target, joined_name, target_of, targets_of
from stc.errors import EngineError


def this_target(device: DeviceFacts) -> Target:
    """The target this machine's GPU is. Raises EngineError when the table does not say."""
    target = known_target(device)
    if target is None:
        alike = [one.name for one in targets_of(device.compute_capability)]
        capability = "{}.{}".format(*device.compute_capability)
        raise EngineError(
            "this device",
            f"{device.name} has compute capability {capability}, board {device.board or 'unknown'}",
            "one of the targets",
            f"name its module: stc-build BUNDLE --target {' or '.join(alike)}"
            if alike
            else "add a line to engines/library/targets.py, or use --backend onnxruntime",
        )
    return target


def known_target(device: DeviceFacts) -> Target | None:
    """The target this machine's GPU is, None when the table does not say."""
    return target_of(device.compute_capability, device.board, device.modules)


def may_be(device: DeviceFacts, target: Target) -> bool:
    """Whether this machine's GPU is `target`, as far as the table can say."""
    known = known_target(device)
    return device.compute_capability == target.compute_capability and known in (target, None)


def choose_flavour(targets: tuple[Target, ...], wanted: Flavour | None) -> TensorRt:
    """The flavour `wanted`, or the first installed one that builds for `targets`.

    Raises EngineError when it is not installed or does not build for them.
    """
    if wanted is not None:
        _refuse_flavour(targets, wanted)
        return load_tensorrt(wanted)
    refusals = []
    for flavour in FLAVOURS:
        try:
            _refuse_flavour(targets, flavour)
            return load_tensorrt(flavour)
        except EngineError as error:
            refusals.append(error)
    # The last flavour's line: where it can build at all, it is the one pip installs whole.
    raise refusals[-1] if all(target.rtx for target in targets) else refusals[0]


def check_precision(bundle: Bundle, targets: tuple[Target, ...]) -> None:
    """Raises EngineError naming the export command when the bundle's precision does not suit."""
    made = bundle.manifest.provenance
    for target in targets:
        if made.precision in target.precisions:
            continue
        raise EngineError(
            bundle.root,
            f"holds {made.precision} graphs",
            f"{' or '.join(target.precisions)} for target {target.name}",
            bundle.export_again(precision=target.precisions[0]),
        )


def check_native(
    tensorrt: TensorRt, targets: tuple[Target, ...], device: DeviceFacts | None, why_not: str
) -> None:
    """Native TensorRT builds only for the GPU it sits on, in the versions that know it.

    `device` None means that no GPU can be used, for the reason `why_not`. Raises EngineError.
    """
    if len(targets) > 1:
        raise EngineError(
            f"--target {joined_name(targets)}",
            "native TensorRT builds for one GPU at a time",
            "",
            "name one target, or use --backend tensorrt-rtx",
        )
    (target,) = targets
    least, below = target.tensorrt
    known = version_at_least(tensorrt.version, _numbers(least))
    if not known or version_at_least(tensorrt.version, _numbers(below)):
        raise EngineError(
            f"target {target.name}",
            f"TensorRT {tensorrt.version} is installed",
            f"{least} or newer, below {below}",
            "use a JetPack or TensorRT in that range"
            + (", or --backend tensorrt-rtx" if target.rtx else ""),
        )
    capability = "{}.{}".format(*target.compute_capability)
    rtx = "; or use --backend tensorrt-rtx" if target.rtx else ""
    if device is None:
        raise EngineError(
            f"target {target.name}",
            f"no GPU can be used here ({why_not})",
            f"compute capability {capability}",
            f"run stc-build on the device{rtx}",
        )
    if not may_be(device, target):
        here = "{}.{}".format(*device.compute_capability)
        raise EngineError(
            f"target {target.name}",
            f"this machine has {device.name}, compute capability {here} {device.board}",
            f"{capability} {target.board}",
            f"use --target this-device, or run stc-build on the device{rtx}",
        )


def _refuse_flavour(targets: tuple[Target, ...], flavour: Flavour) -> None:
    for target in targets:
        if flavour == "tensorrt-rtx" and not target.rtx:
            capability = "{}.{}".format(*target.compute_capability)
            raise EngineError(
                f"target {target.name}",
                f"TensorRT-RTX does not run on compute capability {capability}",
                "",
                "use --backend tensorrt, on the device",
            )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
