"""A large network computes in float32 though its weights lie as they are stored: layer by layer.

Weights that are mapped from their file cost no memory of their own. A layer is widened while it
runs, so what is held on top of them is one layer in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def compute_in_float32(model: Any) -> None:
    """`model`, from transformers, computes in float32 from now on, whatever its weights are."""
    table = model.get_input_embeddings()
    for layer in _layers(model):
        if layer is not table:
            _Widened(layer)
    # Looking a row up is exact in any dtype, and the table is the largest tensor there is.
    table.register_forward_hook(lambda _module, _inputs, rows: rows.float())


class _Widened:
    """Widens the parameters of `layer` before each of its calls, and puts them back after it."""

    def __init__(self, layer: nn.Module) -> None:
        self._stored: list[tuple[nn.Parameter, Tensor]] = []
        layer.register_forward_pre_hook(self._widen)
        layer.register_forward_hook(self._restore, always_call=True)

    def _widen(self, layer: nn.Module, _inputs: object) -> None:
        self._stored = [(parameter, parameter.data) for parameter in layer.parameters()]
        for parameter, stored in self._stored:
            parameter.data = stored.float()

    def _restore(self, _layer: nn.Module, _inputs: object, _outputs: object) -> None:
        for parameter, stored in self._stored:
            parameter.data = stored
        self._stored = []


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of `module` that run one after another: no list of layers is inside one."""
    for child in module.children():
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _layers(child)
        else:
            yield child
