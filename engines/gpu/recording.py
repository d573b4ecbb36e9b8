"""Device work that is repeated: enqueued plainly once, then captured, then replayed.

The first run is a warm-up: contexts allocate and compile in it what a capture cannot hold. A graph
holds addresses, so when memory it used was freed it is warmed up and captured anew. Work that
cannot be captured is enqueued plainly for good, and that is said once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from stc.engines.gpu.device import Device, DeviceGraph
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
        self._warm = False
        self._graph: DeviceGraph | None = None
        self._finalizer: weakref.finalize[..., Recording] | None = None

    @property
    def captured(self) -> bool:
        """Whether the next run replays a graph."""
        return self._graph is not None and not self._graph.stale

    def run(self) -> None:
        """The work is enqueued once more.

        Raises EngineError when it cannot be; whatever was enqueued of it is of no use then.
        """
        if self._graph is not None and self._graph.stale:
            self.close()
        if self._graph is None and self._warm and not self.plain:
            self._capture()
        if self._graph is None:
            self._body()
            self._warm = True
        else:
            self._device.launch(self._graph)

    def close(self) -> None:
        """Its graph is given back; another run starts anew."""
        if self._finalizer is not None:
            self._finalizer()
        self._graph = self._finalizer = None
        self._warm = False

    def _capture(self) -> None:
        try:
            self._graph = self._device.capture(self._body)
        except EngineError as error:
            if self._device.lost:
                raise
            self.plain = True
            self._say(f"{self.name}: no CUDA graph ({error}); engines are enqueued one by one")
            return
        self._finalizer = weakref.finalize(self, self._device.drop, self._graph)
