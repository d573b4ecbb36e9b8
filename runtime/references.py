"""What a stream keeps of its last reference frame: three tensors a block."""

from __future__ import annotations

from stc.engines.engine import Tensor
from stc.runtime.tower import VisionTower


class References:
    """Buffers for key [H, T, d], value [H, T, d] and residual [T, C] of every block.

    Allocated once; each reference frame overwrites them. `valid` says whether they hold a whole
    reference frame.
    """

    def __init__(self, tower: VisionTower) -> None:
        spec = tower.spec
        heads = (spec.heads, spec.tokens, spec.head_width)
        rows = (spec.tokens, spec.width)

        def buffers(shape: tuple[int, ...]) -> list[Tensor]:
            return [tower.backend.empty(shape, tower.dtype) for _ in range(spec.blocks)]

        self.key = buffers(heads)
        self.value = buffers(heads)
        self.residual = buffers(rows)
        self.valid = False
        self.size_bytes = 3 * spec.blocks * spec.tokens * spec.width * tower.dtype.itemsize

    @property
    def tensors(self) -> list[Tensor]:
        """All its buffers."""
        return [*self.key, *self.value, *self.residual]
