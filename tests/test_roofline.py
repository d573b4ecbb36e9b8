"""What lists of kernels cost, and the boards they are timed for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stc.engines.build.kernels import Kernel
from stc.engines.build.layers import EngineLayers
from stc.engines.build.roofline import Factors, Roofline, cost_of
from stc.engines.library.boards import BOARDS, Board, boards_of, known_board
from stc.engines.library.targets import TARGETS
from stc.errors import EngineError

BOARD = Board(
    name="board",
    target="sm86",
    memory_gib=8,
    fp16_tflops=10.0,
    fp32_tflops=1.0,
    bandwidth_gb_s=100.0,
    known_as="board",
    source="made up",
)
IDEAL = Factors(compute_efficiency=1.0, bandwidth_efficiency=1.0, kernel_us=0.0)


def kernel(moved: int = 0, macs: int = 0, item_bytes: int = 2, weights: int = 0) -> Kernel:
    return Kernel("k", "gemm", (), moved, weights, item_bytes, macs)


def layers(*kernels: Kernel, attentions: int = 0, fused: int = 0) -> EngineLayers:
    return EngineLayers(kernels, 64, attentions, fused)


def ms(factors: Factors, *kernels: Kernel) -> float:
    return Roofline([layers(*kernels)], BOARD).ms(factors)


def test_a_kernel_takes_as_long_as_the_longer_of_its_operations_and_its_bytes() -> None:
    assert ms(IDEAL, kernel(macs=5 * 10**9)) == pytest.approx(1.0)
    assert ms(IDEAL, kernel(moved=10**8)) == pytest.approx(1.0)
    assert ms(IDEAL, kernel(moved=10**8, macs=10**9)) == pytest.approx(1.0)
    assert ms(IDEAL, kernel(moved=10**8), kernel(macs=5 * 10**9)) == pytest.approx(2.0)


def test_products_in_float32_have_a_peak_of_their_own() -> None:
    assert ms(IDEAL, kernel(macs=5 * 10**8, item_bytes=4)) == pytest.approx(1.0)


def test_every_factor_changes_its_part() -> None:
    computes, moves = kernel(macs=5 * 10**9), kernel(moved=10**8)
    assert ms(replace(IDEAL, compute_efficiency=0.5), computes, moves) == pytest.approx(3.0)
    assert ms(replace(IDEAL, bandwidth_efficiency=0.25), computes, moves) == pytest.approx(5.0)
    assert ms(replace(IDEAL, kernel_us=500.0), computes, moves) == pytest.approx(3.0)


def test_costs_add_up_and_scratch_memory_is_shared() -> None:
    one = layers(kernel(100, 7, weights=60), kernel(10), attentions=1, fused=1)
    other = EngineLayers((kernel(1),), None, 1, 0)
    cost = cost_of([one, one, other])
    assert (cost.kernels, cost.bytes, cost.weight_bytes, cost.macs) == (5, 221, 120, 14)
    assert cost.scratch_bytes == 64
    assert cost.attention_fused is False
    assert cost_of([one]).attention_fused is True
    assert cost_of([layers(kernel())]).attention_fused is None
    assert cost_of([other]).scratch_bytes is None


AGX = "NVIDIA Jetson AGX Orin Developer Kit"
NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def test_boards_stand_by_their_targets_with_a_source() -> None:
    for board in BOARDS:
        assert board.target in TARGETS
        assert board.source
        assert board.fp16_tflops > board.fp32_tflops > 0
        assert board.memory_gib << 30 >= TARGETS[board.target].memory_bytes
    for name in ("orin-nano", "orin-nx", "orin-agx", "sm80", "sm86", "sm89", "sm120"):
        found = boards_of(TARGETS[name])
        # The target's own figures are of the board its memory is of.
        assert found[0].memory_gib << 30 == TARGETS[name].memory_bytes


def test_a_target_without_a_known_board_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"target sm121: no peak and bandwidth .*boards\.py"):
        boards_of(TARGETS["sm121"])


def test_an_orins_peak_is_what_its_brief_says() -> None:
    found = {board.name: board for board in BOARDS}
    # 170 sparse TOPS of int8 are 42.5 dense TFLOPS of float16; 67 are 16.7.
    assert found["AGX Orin 64GB"].fp16_tflops == pytest.approx(42.5, rel=0.01)
    assert found["AGX Orin 64GB"].fp32_tflops == pytest.approx(5.3, rel=0.01)
    assert found["Orin Nano 8GB Super"].fp16_tflops == pytest.approx(67 / 4, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "tree", "gib", "mode", "name"),
    [
        ("NVIDIA GeForce RTX 4060", "", 7.7, "115.00 W", "RTX 4060"),
        ("NVIDIA GeForce RTX 4060", "", 0, "", None),
        ("NVIDIA GeForce RTX 3060", "", 7.7, "170.00 W", None),
        ("NVIDIA GeForce RTX 4060 Ti", "", 7.7, "", None),
        ("Orin", AGX, 29.9, "MAXN", "AGX Orin 32GB"),
        ("Orin", AGX, 61.4, "MAXN", "AGX Orin 64GB"),
        ("Orin", AGX, 61.4, "MODE_30W", None),
        ("Orin", AGX, 61.4, "", None),
        ("Orin (nvgpu)", NANO, 7.4, "MAXN_SUPER", "Orin Nano 8GB Super"),
        ("Orin (nvgpu)", NANO, 7.4, "15W", "Orin Nano 8GB 15W"),
        ("Orin (nvgpu)", NANO, 7.4, "25W", None),
        ("Orin (nvgpu)", NANO, 3.7, "15W", None),
        ("Orin", "NVIDIA Jetson Orin NX", 15.3, "MAXN_SUPER", "Orin NX 16GB Super"),
        ("NVIDIA L4", "", 22.5, "72.00 W", "L4"),
        ("NVIDIA H200", "", 139, "", None),
        ("", "", 8, "", None),
    ],
)
def test_a_board_is_known_by_what_its_driver_calls_it(
    gpu: str, tree: str, gib: float, mode: str, name: str | None
) -> None:
    found = known_board(gpu, tree, int(gib * 2**30), mode)
    assert (found.name if found else None) == name
