"""A video source: what files and cameras have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Literal, TypeVar, get_args

from stc.errors import VideoError
from stc.runtime.video.source.address import without_credentials as without_credentials
from stc.runtime.video.source.frame import Frame

RtspTransport = Literal["auto", "tcp", "udp"]
RTSP_TRANSPORTS: tuple[RtspTransport, ...] = get_args(RtspTransport)
GIVE_UP_S = 60.0
"""How long a live source that was lost is waited for, after the last frame that was decoded."""

_Source = TypeVar("_Source", bound="VideoSource")


class VideoSource(ABC, Iterator[Frame]):
    """The frames of one source, in order; release it with `close`, or by leaving its `with`.

    name: the source as the user wrote it, without user name and password.
    is_live: whether frames come at the source's pace, so that late ones are dropped.
    dropped: sampled live frames never handed out, because a newer one came first; counted from the
        first call of `wait` or `next`.
    broken: frames or packets that could not be decoded and were skipped.
    reconnects: times a lost live source was opened again.
    oldest_ms: longest time that passed between decoding a live frame and handing it out.
    frames_expected: estimate of the sampled frames of a file; None if unknown, or live.
    rate: frames per second the source declares; None if it declares none.
    notice: what else there is to know about how the source is read, one line; None for nothing.
    loss: once iteration has ended, why it ended before the source should have; None if it did not.
    """

    is_live: ClassVar[bool]

    def __init__(self, source: str) -> None:
        self.name = without_credentials(source)
        self.dropped = 0
        self.broken = 0
        self.reconnects = 0
        self.oldest_ms = 0.0
        self.frames_expected: int | None = None
        self.rate: float | None = None
        self.notice: str | None = None
        self.loss: VideoError | None = None

    @abstractmethod
    def __next__(self) -> Frame:
        """The next sampled frame.

        Raises StopIteration at the end of a file and after `close`; VideoError when the source
        cannot be read on.
        """

    def wait(self, timeout_s: float) -> bool:
        """Whether `next` has something to give or to raise, waiting for it `timeout_s` at most.

        A file always has.
        """
        return True

    @abstractmethod
    def close(self) -> None:
        """The source is released and iteration ends; closing again does nothing."""

    def __enter__(self: _Source) -> _Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
