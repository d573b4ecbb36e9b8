"""Captured work of a device, and the memory it holds addresses of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class DeviceGraph:
    """`executable` replays work that uses the memory at `addresses`.

    stale: some of that memory was freed; it must not be launched any more.
    """

    executable: Any
    addresses: frozenset[int]
    stale: bool = False
