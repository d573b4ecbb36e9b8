"""Boards of every target: what their data sheets say of peak and memory, and who says so.

Peaks are dense (no structured sparsity), with sums in float32 as TensorRT's float16 products have
them: GeForce boards do those at half the rate of sums in float16. Of an Orin they are the GPU's
alone, without the DLA that its TOPS count too; an SM of it does 1,024 float16 multiply-accumulates
a clock, and 128 of float32. Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from stc.engines.library.targets import Target
from stc.errors import EngineError

LEAST_TOLD = 0.87
"""Share of a board's memory that its driver tells at least; the rest is kept by the system."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board of `target`. fp16_tflops, fp32_tflops: peak; bandwidth_gb_s: of its memory.

    known_as: how the name that its driver gives it ends; of a Jetson, in what its device tree says.
    power_mode: the mode of a Jetson, as nvpmodel calls it, in which it has that peak; "" elsewhere.
    source: where the figures stand.
    """

    name: str
    target: str
    memory_gib: int
    fp16_tflops: float
    fp32_tflops: float
    bandwidth_gb_s: float
    known_as: str
    source: str
    power_mode: str = ""

    def is_called(self, gpu: str, board: str) -> bool:
        """Whether it is what the driver calls `gpu`, on what the device tree calls `board`."""
        return gpu.strip().endswith(self.known_as) or self.known_as in board

    def runs_as(self, memory_bytes: int, power_mode: str) -> bool:
        """Whether a GPU with `memory_bytes` in `power_mode` has its figures."""
        share = memory_bytes / (self.memory_gib << 30)
        in_mode = not self.power_mode or power_mode.removeprefix("MODE_") == self.power_mode
        return LEAST_TOLD <= share <= 1 and in_mode

    def peak_flops(self, item_bytes: int) -> float:
        """Operations per second on numbers of `item_bytes`: two per multiply-accumulate."""
        return 1e12 * (self.fp16_tflops if item_bytes <= 2 else self.fp32_tflops)


_BRIEF = "Jetson AGX Orin Series Technical Brief v1.2"
_SUPER = "JetPack 6.2 Super Mode, Jetson Orin Nano and NX data sheets"


def _orin(
    name: str,
    target: str,
    memory_gib: int,
    sms: int,
    ghz: float,
    bandwidth_gb_s: float,
    source: str,
    power_mode: str,
) -> Board:
    known_as = {"orin-agx": "AGX Orin", "orin-nx": "Orin NX", "orin-nano": "Orin Nano"}[target]
    return Board(
        name=name,
        target=target,
        memory_gib=memory_gib,
        fp16_tflops=2 * 1024 * sms * ghz / 1e3,
        fp32_tflops=2 * 128 * sms * ghz / 1e3,
        bandwidth_gb_s=bandwidth_gb_s,
        known_as=known_as,
        source=source,
        power_mode=power_mode,
    )


def _desktop(
    name: str,
    target: str,
    memory_gib: int,
    fp16_tflops: float,
    fp32_tflops: float,
    bandwidth_gb_s: float,
    source: str,
) -> Board:
    return Board(
        name=name,
        target=target,
        memory_gib=memory_gib,
        fp16_tflops=fp16_tflops,
        fp32_tflops=fp32_tflops,
        bandwidth_gb_s=bandwidth_gb_s,
        known_as=name,
        source=source,
    )


_GA10X = "NVIDIA Ampere GA102 whitepaper (rate per SM), GeForce RTX 30 specifications"
_AD10X = "NVIDIA Ada GPU architecture whitepaper (rate per SM), GeForce RTX 40 specifications"
_GB20X = "NVIDIA RTX Blackwell architecture whitepaper (rate per SM), GeForce RTX 50 specifications"

BOARDS = (
    _orin("AGX Orin 32GB", "orin-agx", 32, 14, 0.93, 204.8, _BRIEF, "MAXN"),
    _orin("AGX Orin 64GB", "orin-agx", 64, 16, 1.3, 204.8, _BRIEF, "MAXN"),
    _orin("Orin NX 8GB Super", "orin-nx", 8, 8, 1.173, 102.4, _SUPER, "MAXN_SUPER"),
    _orin("Orin NX 16GB Super", "orin-nx", 16, 8, 1.173, 102.4, _SUPER, "MAXN_SUPER"),
    _orin("Orin Nano 8GB Super", "orin-nano", 8, 8, 1.02, 102.4, _SUPER, "MAXN_SUPER"),
    _orin("Orin Nano 8GB 15W", "orin-nano", 8, 8, 0.625, 68.3, _SUPER, "15W"),
    _desktop(
        "A100-PCIE-40GB", "sm80", 40, 312.0, 19.5, 1555.0, "NVIDIA A100 Tensor Core GPU data sheet"
    ),
    _desktop("RTX 3050", "sm86", 8, 18.2, 9.1, 224.0, _GA10X),
    _desktop("RTX 3060", "sm86", 12, 25.5, 12.7, 360.0, _GA10X),
    _desktop("RTX 3090", "sm86", 24, 71.2, 35.6, 936.0, _GA10X),
    _desktop("RTX 4060", "sm89", 8, 30.2, 15.1, 272.0, _AD10X),
    _desktop("L4", "sm89", 24, 121.0, 30.3, 300.0, "NVIDIA L4 Tensor Core GPU data sheet"),
    _desktop("RTX 4090", "sm89", 24, 165.2, 82.6, 1008.0, _AD10X),
    _desktop("RTX 5060", "sm120", 8, 38.4, 19.2, 448.0, _GB20X),
    _desktop("RTX 5090", "sm120", 32, 209.5, 104.8, 1792.0, _GB20X),
)
"""By target, the common one of the least memory first, of a Jetson in its fastest mode: what a
target's own figures are of."""


def boards_of(target: Target) -> tuple[Board, ...]:
    """The boards of `target`. Raises EngineError when the table has none."""
    found = tuple(board for board in BOARDS if board.target == target.name)
    if not found:
        known = ", ".join(dict.fromkeys(board.target for board in BOARDS))
        raise EngineError(
            f"target {target.name}",
            "no peak and bandwidth of a board of it is known",
            f"one of {known}",
            "add a board with its data sheet's figures to engines/library/boards.py",
        )
    return found


def known_board(gpu: str, board: str, memory_bytes: int, power_mode: str) -> Board | None:
    """The board whose driver says `gpu` and whose device tree says `board`, with so much memory and
    in that mode of nvpmodel. None: the table has none, or has it with other memory or in another
    mode, whose figures are not its own.
    """
    called = (one for one in BOARDS if one.is_called(gpu, board))
    return next((one for one in called if one.runs_as(memory_bytes, power_mode)), None)
