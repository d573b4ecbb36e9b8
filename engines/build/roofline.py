"""What lists of kernels cost, added up; and how long a GPU would take for them at best.

The roofline: a kernel takes as long as its operations at the board's peak, or its bytes at the
memory's bandwidth, whichever is longer. No kernel reaches either, so both are multiplied by a share
(Factors), and every kernel costs a little to begin. What caches save, what kernels do beside each
other and what a board's clocks do when it is hot is not in it: an estimate until it is calibrated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stc.engines.build.layers import EngineLayers
from stc.engines.library.boards import Board


@dataclass(frozen=True)
class Factors:
    """compute_efficiency, bandwidth_efficiency: share of peak and bandwidth that kernels reach,
    over 0 and at most 1. kernel_us: what each kernel costs besides. host_call_us: what each call of
    the host into CUDA or TensorRT costs that is no part of a CUDA graph.

    The defaults are guesses: shares that large float16 products reach on boards of this size.
    """

    compute_efficiency: float = 0.6
    bandwidth_efficiency: float = 0.75
    kernel_us: float = 2.0
    host_call_us: float = 10.0


FITTED = ("compute_efficiency", "bandwidth_efficiency")
"""Factors that measured times tell."""


@dataclass(frozen=True)
class Cost:
    """The sum over engine runs: `kernels`, `bytes` read and written, of them `weight_bytes`, and
    multiply-accumulates (`macs`). scratch_bytes: of the run that needs most, None where it was not
    told. attentions: how many there are; fused: of them, in one kernel each.
    """

    kernels: int
    bytes: int
    weight_bytes: int
    macs: int
    scratch_bytes: int | None
    attentions: int
    fused: int

    @property
    def attention_fused(self) -> bool | None:
        """Whether every attention is one kernel; None without any."""
        return self.fused == self.attentions if self.attentions else None


def cost_of(runs: Iterable[EngineLayers]) -> Cost:
    """What the engine runs `runs` cost together."""
    runs = list(runs)
    kernels = [kernel for run in runs for kernel in run.kernels]
    scratch = [run.scratch_bytes for run in runs if run.scratch_bytes is not None]
    return Cost(
        kernels=len(kernels),
        bytes=sum(kernel.bytes for kernel in kernels),
        weight_bytes=sum(kernel.weight_bytes for kernel in kernels),
        macs=sum(kernel.macs for kernel in kernels),
        scratch_bytes=max(scratch, default=None),
        attentions=sum(run.attentions for run in runs),
        fused=sum(run.fused for run in runs),
    )


class Roofline:
    """The engine runs `runs` on `board`, to be timed under any factors."""

    def __init__(self, runs: Iterable[EngineLayers], board: Board) -> None:
        kernels = [kernel for run in runs for kernel in run.kernels]
        peaks = [board.peak_flops(kernel.item_bytes) for kernel in kernels]
        macs = [kernel.macs for kernel in kernels]
        self._compute_s = 2 * np.array(macs, np.float64) / np.array(peaks, np.float64)
        moved = np.array([kernel.bytes for kernel in kernels], np.float64)
        self._memory_s = moved / (board.bandwidth_gb_s * 1e9)

    def ms(self, factors: Factors) -> float:
        """The estimated time on the GPU, without the host's, in ms."""
        compute_s = self._compute_s / factors.compute_efficiency
        memory_s = self._memory_s / factors.bandwidth_efficiency
        beginning_s = factors.kernel_us * len(compute_s) / 1e6
        return 1e3 * (float(np.maximum(compute_s, memory_s).sum()) + beginning_s)
