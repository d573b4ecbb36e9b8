"""Waits inside libraries that Ctrl-C ends at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


def awaited(call: Callable[[], _Value]) -> _Value:
    """What `call` returns or raises; a thread calls it, so that Ctrl-C need not wait for it.

    Interrupted, the call goes on to its end, and nobody hears of it.
    """
    done: SimpleQueue[tuple[list[_Value], BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put(([call()], None))
        except BaseException as error:
            done.put(([], error))

    threading.Thread(target=run, daemon=True).start()
    values, error = done.get()
    if error is not None:
        raise error
    return values[0]


class Awaited(Iterator[_Value], Generic[_Value]):
    """`items`, each of them `awaited`.

    is_abandoned: whether a wait was interrupted, so that `items` may still be at work.
    """

    def __init__(self, items: Iterator[_Value]) -> None:
        self._items = items
        self.is_abandoned = False

    def __next__(self) -> _Value:
        self.is_abandoned = True
        try:
            item = awaited(self._items.__next__)
        except Exception:
            self.is_abandoned = False
            raise
        self.is_abandoned = False
        return item
