"""torch's exporter collects thousands of operators for each graph anew, most of its time."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch._export.utils as operators
from torch.onnx._internal.exporter._registration import ONNXRegistry


def collect_once(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """The exporter keeps what it collected first; `setattr_` puts that into its places."""
    setattr_(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
    name = "_collect_all_valid_cia_ops_for_namespace"
    setattr_(operators, name, cache(getattr(operators, name)))
