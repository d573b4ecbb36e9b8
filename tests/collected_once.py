"""torch's exporter collects the same 500 functions for each graph anew, half of its time.

Run as a program, it is `stc-export` without that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from torch.onnx._internal.exporter._registration import ONNXRegistry


def collect_once(setattr_: Callable[[Any, str, Any], None] = setattr) -> None:
    """The exporter keeps what it collected first; `setattr_` says so to its class."""
    setattr_(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))


if __name__ == "__main__":
    from stc.export import command

    collect_once()
    sys.exit(command.main(sys.argv[1:]))
