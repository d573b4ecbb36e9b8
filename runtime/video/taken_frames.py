"""The frames a run takes of a source, and what ended them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from stc.errors import VideoError
from stc.runtime.video.source.frame import Frame
from stc.runtime.video.source.source import VideoSource

EndedBy = Literal["end", "frames", "interrupt", "loss", "error"]
"""The source's end, as many frames as were asked for, a signal, a lost source, a failing engine."""


class TakenFrames(Iterator[Frame]):
    """The frames of `source`, `most` of them at most; all when None.

    A source that cannot be read on after its first frame, or ends before it should, ends them as
    its end would, so that what was computed is kept, and `loss` says why.

    ended_by: what ended the frames.
    """

    def __init__(self, source: VideoSource, most: int | None) -> None:
        self.ended_by: EndedBy = "end"
        self.loss: VideoError | None = None
        self._source = source
        self._most = most
        self._taken = 0

    @property
    def expected(self) -> int | None:
        """How many there will be, estimated; None when nothing tells."""
        numbers = (self._source.frames_expected, self._most)
        return min((number for number in numbers if number is not None), default=None)

    def wait(self, timeout_s: float) -> bool:
        """Whether `next` need not wait; see VideoSource."""
        return self._taken == self._most or self._source.wait(timeout_s)

    def __next__(self) -> Frame:
        if self._taken == self._most:
            self.ended_by = "frames"
            raise StopIteration
        try:
            frame = next(self._source)
        except StopIteration:
            self._lost(self._source.loss)
            raise
        except VideoError as error:
            if not self._taken:
                raise
            self._lost(error)
            raise StopIteration from error
        self._taken += 1
        return frame

    def _lost(self, error: VideoError | None) -> None:
        if error is not None:
            self.ended_by, self.loss = "loss", error
