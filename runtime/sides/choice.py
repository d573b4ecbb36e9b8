"""What a bundle is compared with: PyTorch, or ONNX Runtime on a device that has no PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from stc.bundles.bundle import Bundle
from stc.runtime.sides.onnx import OnnxLanguageSide, OnnxSide, onnx_language_side, onnx_side
from stc.runtime.sides.torch import (
    TorchLanguageSide,
    TorchSide,
    torch_is_installed,
    torch_language_side,
    torch_side,
)
from stc.settings import Settings

Against = Literal["PyTorch", "ONNX Runtime"]
PYTORCH: Final = "PyTorch"
ONNX_RUNTIME: Final = "ONNX Runtime"


def other_side(checkpoint: str | None, *, on_device: bool) -> Against:
    """PyTorch, unless engines are compared where there is none and no `checkpoint` asks for it."""
    if on_device and checkpoint is None and not torch_is_installed():
        return ONNX_RUNTIME
    return PYTORCH


@contextmanager
def vision_side(
    bundle: Bundle, checkpoint: str | None, against: Against, settings: Settings
) -> Iterator[TorchSide | OnnxSide]:
    """The tower of `bundle` on the other side; raises as `torch_side` and `onnx_side`."""
    if against == ONNX_RUNTIME:
        yield onnx_side(bundle, settings)
        return
    with torch_side(bundle, checkpoint) as side:
        yield side


@contextmanager
def language_side(
    bundle: Bundle, checkpoint: str | None, against: Against
) -> Iterator[TorchLanguageSide | OnnxLanguageSide]:
    """The decoder of `bundle` on the other side; raises as `vision_side`."""
    if against == ONNX_RUNTIME:
        yield onnx_language_side(bundle)
        return
    with torch_language_side(bundle, checkpoint) as side:
        yield side
