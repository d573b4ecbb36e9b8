"""Mocks of a CUDA stream and of its events; `tests.fake_cuda` runs them."""

from __future__ import annotations

from collections.abc import Callable

Work = Callable[[], None]


class FakeEvent:
    """`time` is set when the stream gets to its mark; `timed` unless a capture swallowed it."""

    def __init__(self) -> None:
        self.time: int | None = None
        self.timed = True


class FakeStream:
    """Work in order, and whether it is being captured."""

    def __init__(self, handle: int, flags: int) -> None:
        self.handle, self.flags = handle, flags
        self.work: list[Work] = []
        self.captured: list[Work] | None = None
        self.broken = False

    def __int__(self) -> int:
        return self.handle
