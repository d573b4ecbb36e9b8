"""The latency that `stc-parity` tells: frames enough of each kind, in a time that is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from stc.runtime.bench.bench import Bench
from stc.runtime.sides.other import OtherStream
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.frame import Frame

ENOUGH = 10
"""Frames of each kind after which nothing more is measured."""
FEW, FEW_AFTER_S = 3, 60.0
"""Frames of each kind that do for a big model, after so many seconds."""
ONE_AFTER_S = 180.0
"""Seconds after which one of each kind has to do: reference frames may be far apart."""


def measure_latency(
    session: StreamSession,
    frames: Sequence[Frame],
    torch_stream: OtherStream | None,
    tick: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Bench:
    """The times of `frames`, in turns, behind a first interval that does not count.

    `tick` is given the number of frames measured of the rarer kind.
    """
    shown, interval = cycle(frames), session.settings.reference_interval
    # On a GPU until every frame is a replay, and an interval of those.
    warm_up = session.runner.warm_up_runs
    unmeasured = interval * (warm_up if warm_up == 1 else warm_up + 1)
    warming = Bench(session)
    for frame in islice(shown, unmeasured):
        warming.measure(frame, torch_stream)
    bench, start_s = Bench(session), clock()
    while True:
        bench.measure(next(shown), torch_stream)
        kinds = [bench.reference_ms, bench.reuse_ms][: min(2, interval)]
        measured, spent_s = min(map(len, kinds)), clock() - start_s
        tick(measured)
        if measured >= ENOUGH:
            return bench
        if (measured >= FEW and spent_s > FEW_AFTER_S) or (measured and spent_s > ONE_AFTER_S):
            return bench
