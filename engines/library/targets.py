"""The GPUs engines are built for: one line each.

Memory is that of the smallest common board. `tensorrt` is the range of native TensorRT versions
that know the GPU and that this project's names exist in; `rtx` says whether TensorRT-RTX compiles
for it (never for Orin, compute capability 8.7). `recompute_ratios` are the buckets of M built
besides the bundle's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from stc.errors import EngineError
from stc.manifest import Precision

THIS_DEVICE = "this-device"
JOINED = "+"
"""Between the names of targets that share engines (TensorRT-RTX): `sm86+sm89`."""

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of GPU.

    board: what /proc/device-tree/model says on it; native engines are tuned to a board, not only
        to its compute capability. Empty for GPUs that are known by their capability.
    modules: numbers of NVIDIA's modules that it is, as /proc/device-tree/compatible has them on
        boards of any maker.
    unified: memory is shared with the CPU.
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
    recompute_ratios: tuple[float, ...] = (0.25, 0.5)

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


def parse_targets(names: str) -> tuple[Target, ...]:
    """The targets of `names`, joined by +, in the order of TARGETS, each once.

    Raises EngineError naming the targets there are.
    """
    wanted = names.split(JOINED)
    for name in wanted:
        if name not in TARGETS:
            raise EngineError(
                "--target",
                f"got {name!r}",
                f"{THIS_DEVICE}, {', '.join(TARGETS)}, or several joined by {JOINED}",
            )
    return tuple(target for target in _ALL if target.name in wanted)


def joined_name(targets: tuple[Target, ...]) -> str:
    """The name of `targets` together, also their folder's: `sm86+sm89`."""
    return JOINED.join(target.name for target in targets)


def target_of(compute_capability: tuple[int, int], board: str, modules: str = "") -> Target | None:
    """The target a GPU is, by its capability and what the device tree says.

    `board` is its model, `modules` what it is compatible with.
    """
    alike = targets_of(compute_capability)
    for target in alike:
        if target.board and target.board in board:
            return target
    for target in alike:
        if any(module in modules for module in target.modules):
            return target
    return next((target for target in alike if not target.board), None)


def targets_of(compute_capability: tuple[int, int]) -> list[Target]:
    """The targets of a compute capability: several where boards differ."""
    return [target for target in _ALL if target.compute_capability == compute_capability]
