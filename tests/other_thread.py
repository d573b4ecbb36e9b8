"""Another thread that does something while a capture is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.fake_cuda import FakeCuda

LONG_ENOUGH_S = 0.5
"""For the other thread to come to its end, unless it waits for the capture's, as it should."""


class OtherThread:
    """Runs `work` once the next capture on `cuda` has begun, which then goes on."""

    def __init__(
        self, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]
    ) -> None:
        self._cuda = cuda
        self._work = work
        self._done = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        monkeypatch.setattr(cuda, "cudaStreamBeginCapture", self._begin)

    def join(self) -> None:
        """It has come to its end. Raises what it raised."""
        assert self._thread.ident is not None, "nothing was captured"
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._failures:
            raise self._failures[0]

    def _begin(self, stream: Any, mode: int) -> tuple[Any, ...]:
        begun = FakeCuda.cudaStreamBeginCapture(self._cuda, stream, mode)
        if self._thread.ident is None:
            self._thread.start()
            self._done.wait(LONG_ENOUGH_S)
        return begun

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as failure:  # told in the thread that can fail the test
            self._failures.append(failure)
        finally:
            self._done.set()
