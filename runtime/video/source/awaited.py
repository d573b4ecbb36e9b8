"""Waits inside libraries that Ctrl-C ends at once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_Value = TypeVar("_Value")

_Outcome = tuple[list[_Value], BaseException | None]


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
