"""Frames and their source: what files and cameras have in common, and waits that Ctrl-C ends."""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import ClassVar, Generic, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from stc.errors import VideoError
from stc.runtime.video.source.address import without_credentials as without_credentials
from stc.shell.ranges import real, shown, whole

RtspTransport = Literal["auto", "tcp", "udp"]
RTSP_TRANSPORTS: tuple[RtspTransport, ...] = get_args(RtspTransport)
GIVE_UP_S = 60.0
"""How long a live source that was lost is waited for, after the last frame that was decoded."""

MOST_PX = 1_000_000
"""Of a place in a picture: more than any codec has."""
LAST_INDEX = 2**53
"""Of a frame: what every reader of JSON still reads."""

_Source = TypeVar("_Source", bound="VideoSource")
_Value = TypeVar("_Value")
_Outcome = tuple[list[_Value], BaseException | None]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded frame.

    index: number of the sampled frame in its source, from 0.
    time_s: presentation time in seconds from the source's first frame.
    rgb: uint8 [height_px, width_px, 3].
    """

    index: int
    time_s: float
    rgb: NDArray[np.uint8]


@dataclass(frozen=True)
class Crop:
    """A part of a picture: where its left upper pixel lies, and its size, in px of the source."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, least in (("x", 0), ("y", 0), ("width", 1), ("height", 1)):
            number = whole(f"--crop {name}", getattr(self, name), least=least, most=MOST_PX)
            object.__setattr__(self, name, number)

    def of(self, rgb: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        """The part of `rgb`, uint8 [height_px, width_px, 3], contiguous.

        Raises VideoError about the source called `name` when the picture does not reach so far.
        """
        height_px, width_px = rgb.shape[:2]
        right, bottom = self.x + self.width, self.y + self.height
        if right > width_px or bottom > height_px:
            got = f"{width_px}x{height_px} px, of which --crop takes up to {right}, {bottom}"
            raise VideoError(name, got, fix="choose x, y, width and height inside the picture")
        return np.ascontiguousarray(rgb[self.y : bottom, self.x : right])


def check_frame(frame: object) -> None:
    """`frame` is a Frame with a place and a time. Its pixels are for the preprocessor to judge.

    Raises VideoError unless it is.
    """
    if not isinstance(frame, Frame):
        raise VideoError(
            "frame",
            f"got {shown(frame)} of type {type(frame).__name__}",
            "a stc.runtime.Frame",
            "make one with Frame(index=0, time_s=0.0, rgb=picture)",
        )
    whole("frame.index", frame.index, least=0, most=LAST_INDEX, error=VideoError)
    expected = "a finite number of seconds, 0 or more"
    real("frame.time_s", frame.time_s, expected, least=0.0, error=VideoError)


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
    crop: the part of every picture that frames show; None for all of it.
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
        self.crop: Crop | None = None
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

    def cropped(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What frames show of `rgb`. Raises VideoError when `crop` is not inside it."""
        return rgb if self.crop is None else self.crop.of(rgb, self.name)

    @abstractmethod
    def close(self) -> None:
        """The source is released and iteration ends; closing again does nothing."""

    def __enter__(self: _Source) -> _Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def awaited(call: Callable[[], _Value]) -> _Value:
    """What `call` returns or raises; a thread calls it, so that Ctrl-C need not wait for it.

    Interrupted, the call goes on to its end, and nobody hears of it.
    """
    return next(Awaited(one() for one in (call,)))


class Awaited(Iterator[_Value], Generic[_Value]):
    """`items`, all taken by one thread, each when it is asked for; Ctrl-C need not wait for it.

    Ends with the first error of `items`, an interrupted wait, or `close`.

    is_abandoned: whether a wait was interrupted, so that `items` may still be at work.
    """

    def __init__(self, items: Iterator[_Value]) -> None:
        self.is_abandoned = False
        self._is_over = False
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._come: SimpleQueue[_Outcome[_Value]] = SimpleQueue()
        # The thread does not know this object, which else would never be let go of.
        self._end = weakref.finalize(self, self._asked.put, False)
        work = (items, self._asked, self._come)
        threading.Thread(target=_take, args=work, daemon=True).start()

    def __next__(self) -> _Value:
        if self._is_over or self.is_abandoned:
            raise StopIteration
        self.is_abandoned = True
        self._asked.put(True)
        values, error = self._come.get()
        self.is_abandoned = False
        if error is not None:
            self._is_over = True
            raise error
        return values[0]

    def close(self) -> None:
        """The thread ends, at the latest when it comes back from `items`."""
        self._is_over = True
        self._end()


def _take(
    items: Iterator[_Value], asked: SimpleQueue[bool], come: SimpleQueue[_Outcome[_Value]]
) -> None:
    while asked.get():
        try:
            come.put(([next(items)], None))
        except BaseException as error:
            come.put(([], error))
            return
