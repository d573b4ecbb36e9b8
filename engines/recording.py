"""Device work that is repeated: enqueued plainly once, then captured, then replayed.

The first run is a warm-up: contexts allocate and compile in it what a capture cannot hold. A graph
holds addresses, so it is captured anew when memory it used was freed. Work that cannot be captured
is enqueued plainly for good, and that is said once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from stc.engines.device import Device
from stc.errors import EngineError

Say = Callable[[str], None]


class Recording:
    """Repeats the work that `body` enqueues on `device`; `name` is what messages call it.

    `body` enqueues the same work at the same addresses every time and does not synchronize.
    """

    def __init__(self, device: Device, name: str, body: Callable[[], None], say: Say) -> None:
        self.name = name
        self.plain = False
        self._device = device
        self._body = body
        self._say = say
        self._warm_in: int | None = None
        self._graph: Any = None
        self._finalizer: weakref.finalize[..., Recording] | None = None

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph."""
        return self._graph is not None and self._warm_in == self._device.epoch

    def run(self) -> None:
        """The work is enqueued once more.

        Raises EngineError when it cannot be; whatever was enqueued of it is of no use then.
        """
        if self.plain:
            self._body()
            return
        if self.captured:
            self._device.launch(self._graph)
            return
        self._forget()
        if self._warm_in != self._device.epoch:
            self._body()
            # In its first run the body may have grown what it runs in.
            self._warm_in = self._device.epoch
            return
        if self._capture():
            self._device.launch(self._graph)
        else:
            self._body()

    def _capture(self) -> bool:
        try:
            self._graph = self._device.capture(self._body)
        except EngineError as error:
            if self._device.lost:
                raise
            self.plain = True
            self._say(f"{self.name}: no CUDA graph ({error}); engines are enqueued one by one")
            return False
        self._finalizer = weakref.finalize(self, self._device.drop, self._graph)
        return True

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._graph = self._finalizer = None
