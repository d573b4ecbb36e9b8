"""The GPUs engines are built for, one line each, and TensorRT or TensorRT-RTX, which build them.

These are two packages with one Python interface; neither is imported before it is asked for.

Memory is that of the smallest common board. `tensorrt` is the range of native TensorRT versions
that know the GPU and that this project's names exist in; `rtx` says whether TensorRT-RTX compiles
for it (never for Orin, compute capability 8.7). `recompute_ratios` are the buckets of M built
besides the bundle's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from stc import optional
from stc.engines.gpu.cuda import DeviceFacts
from stc.errors import EngineError
from stc.manifest import Precision

THIS_DEVICE = "this-device"
JOINED = "+"
"""Between the names of targets that share engines (TensorRT-RTX): `sm86+sm89`."""

GIB = 1 << 30

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

_MENDS: dict[Flavour, str] = {
    "tensorrt": "on a Jetson it comes with JetPack: make the environment with "
    "python3 -m venv --system-site-packages; elsewhere: pip install tensorrt",
    "tensorrt-rtx": "install it with: pip install 'stc[tensorrt-rtx]'",
}

SEVERAL_PROFILES_SINCE = "10.8"
"""Before 10.8 native TensorRT computed wrongly with several profiles (TensorRT issue 4250)."""


class TensorRt:
    """An imported flavour: `module` is tensorrt or tensorrt_rtx, `version` what it says it is.

    `several_profiles`: one engine may serve several sizes of a free axis and hold its weights once.
    """

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.flavour = flavour
        self.module = module
        self.version = str(module.__version__)
        self.several_profiles = flavour == "tensorrt-rtx" or not optional.older(
            self.version, SEVERAL_PROFILES_SINCE
        )
        # What fixes bindings that cannot make their objects.
        self.wheel_fix = (
            "the driver may be older than the CUDA it was made for: install the wheel of the "
            f"driver's CUDA major version (pip install {flavour}-cu12), or update the driver"
        )


def load_tensorrt(flavour: Flavour) -> TensorRt:
    """The installed `flavour`. Raises EngineError with the command that installs it."""
    name, fix = flavour.replace("-", "_"), _MENDS[flavour]
    return TensorRt(flavour, optional.load(name, flavour, subject=flavour, fix=fix))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of GPU.

    board: what /proc/device-tree/model says on it; native engines are tuned to a board, not only
        to its compute capability. Empty for GPUs that are known by their capability.
    modules: numbers of NVIDIA's modules that it is, as /proc/device-tree/compatible has them on
        boards of any maker.
    unified: memory is shared with the CPU.
    stand_in: where TensorRT-RTX does not compile for it, the target that is nearest to it.
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    precisions: tuple[Precision, ...] = ("fp16",)
    tensorrt: tuple[str, str] = ("10.3", "12")
    rtx: bool = True
    unified: bool = False
    board: str = ""
    modules: tuple[str, ...] = ()
    stand_in: str = ""
    recompute_ratios: tuple[float, ...] = (0.25, 0.5)

    @property
    def capability(self) -> str:
        """The compute capability, for a person: 8.9."""
        return "{}.{}".format(*self.compute_capability)

    @property
    def sm(self) -> str:
        """The compute capability as TensorRT-RTX spells it: SM89."""
        return "SM{}{}".format(*self.compute_capability)


def _orin(name: str, board: str, memory_gib: int, modules: tuple[str, ...]) -> Target:
    return Target(
        name=name,
        compute_capability=(8, 7),
        memory_bytes=memory_gib * GIB,
        rtx=False,
        unified=True,
        board=board,
        modules=modules,
        stand_in="sm86",
        recompute_ratios=(0.25,),
    )


_ALL = (
    _orin("orin-agx", "AGX Orin", 32, ("p3701",)),
    _orin("orin-nx", "Orin NX", 8, ("p3767-0000", "p3767-0001")),
    _orin("orin-nano", "Orin Nano", 8, ("p3767-0003", "p3767-0004", "p3767-0005")),
    Target(name="sm80", compute_capability=(8, 0), memory_bytes=40 * GIB),
    Target(name="sm86", compute_capability=(8, 6), memory_bytes=8 * GIB),
    Target(name="sm89", compute_capability=(8, 9), memory_bytes=8 * GIB),
    Target(name="sm120", compute_capability=(12, 0), memory_bytes=8 * GIB, tensorrt=("10.8", "12")),
    Target(
        name="sm121",
        compute_capability=(12, 1),
        memory_bytes=128 * GIB,
        tensorrt=("10.13", "12"),
        unified=True,
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def parse_targets(names: str, *, this_device: bool = True) -> tuple[Target, ...]:
    """The targets of `names`, joined by +, in the order of TARGETS, each once.

    Raises EngineError naming the targets there are, and with `this_device` what the caller itself
    takes for this machine's.
    """
    wanted = names.split(JOINED)
    here = f"{THIS_DEVICE}, " if this_device else ""
    for name in wanted:
        if name not in TARGETS:
            raise EngineError(
                "--target",
                f"got {name!r}",
                f"{here}{', '.join(TARGETS)}, or several joined by {JOINED}",
            )
    return tuple(target for target in _ALL if target.name in wanted)


def joined_name(targets: tuple[Target, ...]) -> str:
    """The name of `targets` together, also their folder's: `sm86+sm89`."""
    return JOINED.join(target.name for target in targets)


def target_of(device: DeviceFacts) -> Target | None:
    """The target a GPU is, by its capability and what the device tree says; None when no line of
    the table says."""
    alike = targets_of(device.compute_capability)
    for target in alike:
        if target.board and target.board in device.board:
            return target
    for target in alike:
        if any(module in device.modules for module in target.modules):
            return target
    return next((target for target in alike if not target.board), None)


def targets_of(compute_capability: tuple[int, int]) -> list[Target]:
    """The targets of a compute capability: several where boards differ."""
    return [target for target in _ALL if target.compute_capability == compute_capability]
