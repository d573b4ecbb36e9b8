"""What a bundle is compared with, whatever it is made of: whole streams, decoders and models.

Arrays are float32 unless said otherwise. `stc.export` has them in PyTorch: TorchVision,
TorchLanguage and Pretrained.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.settings import Selection

Pixels = NDArray[np.float32]
"""pixel_values [3, Hpx, Wpx]."""


class OtherFrame(Protocol):
    """See `stc.export.models.reference.TorchFrame`."""

    @property
    def hidden(self) -> NDArray[Any]: ...

    @property
    def scores(self) -> list[NDArray[np.float32]]: ...


class OtherStream(Protocol):
    """What a bundle's stream is compared with; in PyTorch it is TorchVision."""

    def dense(self, pixel_values: Pixels) -> NDArray[np.float32]: ...

    def reference(self, pixel_values: Pixels) -> OtherFrame: ...

    def reuse(
        self,
        pixel_values: Pixels,
        recomputed: int,
        selection: Selection,
        forced: list[NDArray[np.int64]] | None = None,
    ) -> OtherFrame: ...

    def project(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...


class WholeDecoder(Protocol):
    """The other side's decoder, whole. hidden [m, D] and logits [V] are float32."""

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def generate(self, hidden: NDArray[np.float32], most: int) -> list[int]: ...


class WholeModel(Protocol):
    """See `stc.export.checkpoint.pretrained.Pretrained`."""

    stop_token_ids: tuple[int, ...]
    missing: tuple[str, ...]

    def pixel_values(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]: ...

    def visual_tokens(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def tokens_move(self, pixel_values: NDArray[np.float32], rounding: float) -> float: ...

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]: ...

    def answer(
        self, hidden: NDArray[np.float32], most: int
    ) -> tuple[list[int], NDArray[np.float32]]: ...

    def logits_move(self, hidden: NDArray[np.float32], rounding: float) -> float: ...

    def prompt_ids(self, question: str) -> NDArray[np.int64]: ...
