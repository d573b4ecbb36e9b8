"""Who draws what the steps of a stage learn from: the process that trains, or others ahead of it.

A processor's training draws what it needs; a GPU would wait for that nine tenths of its time.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

import numpy as np

Draw = Callable[[np.random.Generator, float], Any]
"""Draws what a step learns from; the share of the stage that is done, 0 to 1, may matter."""
AHEAD = 3
"""Batches that wait to be learnt from, for each process that draws."""


def batches(
    draw: Draw, key: tuple[int, ...], steps: range, shards: tuple[int, ...], drawers: int
) -> Iterator[list[Any]]:
    """What each of `steps` learns from, by shards. The same for the same key, step and shard,
    whoever draws it: `drawers` processes ahead of the training, or nobody else (0)."""
    if not drawers:
        for step in steps:
            yield [drawn(draw, key, step, steps.stop, shard) for shard in shards]
        return
    # Forked from a process that has not begun to use the GPU.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([draw.__module__])
    pool = ProcessPoolExecutor(drawers, context, initializer=_begin, initargs=(draw,))
    try:
        waiting: deque[Future[Any]] = deque()
        wanted = ((step, shard) for step in steps for shard in shards)
        for step, shard in islice(wanted, AHEAD * drawers + len(shards)):
            waiting.append(pool.submit(_drawn, key, step, steps.stop, shard))
        for _ in steps:
            found = []
            for _ in shards:
                found.append(waiting.popleft().result())
                for step, shard in islice(wanted, 1):
                    waiting.append(pool.submit(_drawn, key, step, steps.stop, shard))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


def drawn(draw: Draw, key: tuple[int, ...], step: int, steps: int, shard: int) -> Any:
    """What `shard` of `step` of `steps` learns from."""
    return draw(np.random.default_rng([*key, step, shard]), step / steps)


_DRAW: list[Draw] = []


def _begin(draw: Draw) -> None:
    _DRAW[:] = [draw]
    threading.Thread(target=_end_with_the_training, daemon=True).start()


def _end_with_the_training() -> None:
    """A training that is killed leaves nobody who draws for it."""
    training = multiprocessing.parent_process()
    assert training is not None
    wait([training.sentinel])
    os._exit(1)


def _drawn(key: tuple[int, ...], step: int, steps: int, shard: int) -> Any:
    return drawn(_DRAW[0], key, step, steps, shard)
