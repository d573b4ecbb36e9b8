"""Streams a few decoded frames over and over, as `stc-run` does, and measures itself.

Run as a program, in a process that does nothing else: BUNDLE FRAMES. Prints one JSON object;
`rss_bytes` (the median) and `fastest_ms` (the quickest frame's processor time in this thread,
which other processes disturb least) are of each quarter of the stream.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from array import array
from itertools import cycle, islice
from pathlib import Path

from stc.bundle import Bundle
from stc.runtime import open as opening
from stc.runtime.comparison import compare_with_dense
from stc.runtime.live_table import LiveTable
from stc.runtime.metrics import StreamMetrics
from stc.runtime.resident import rss_bytes
from stc.runtime.run_document import run_document
from stc.runtime.session import StreamSession

STREET = Path(__file__).parent / "data" / "street.mp4"


def main(bundle_path: str, count: int) -> None:
    bundle = Bundle.open(bundle_path)
    spec, settings = bundle.manifest.vision, bundle.manifest.default_settings
    session = StreamSession(opening.open_tower(bundle, "cpu"), settings)
    metrics = StreamMetrics(spec.tokens, spec.pooled)
    # Room for the measurements themselves, touched before the first is taken.
    resident, times = array("q", bytes(8 * count)), array("d", bytes(8 * count))
    frames = cycle(opening.frames(str(STREET), 8))
    with LiveTable(spec.tokens, spec.pooled, expected=count) as table:
        for index, frame in enumerate(islice(frames, count)):
            start = time.thread_time()
            report = session.push(frame)
            metrics.add(report)
            table.add(report)
            resident[index], times[index] = rss_bytes(), (time.thread_time() - start) * 1e3
    summary = metrics.summary()
    document = run_document(
        summary, settings=settings, bundle="demo", comparison=compare_with_dense(summary)
    )
    quarters = [slice(count * part // 4, count * (part + 1) // 4) for part in range(4)]
    figures = {
        "frames": document["summary"]["frames"],
        "rss_bytes": [statistics.median(resident[quarter]) for quarter in quarters],
        "fastest_ms": [min(times[quarter]) for quarter in quarters],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
