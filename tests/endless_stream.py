"""Streams a few decoded frames over and over, as `stc-run` does, and measures itself.

Run as a program, in a process that does nothing else: BUNDLE FRAMES, and with `--ask-every N` a
question every N frames, remembered as the flags of `stc-run` say. Prints one JSON object. Lists
are of equal parts of the stream: `rss_bytes` is the median, `fastest_ms` the quickest frame's
processor time in this thread, which other processes disturb least, `prefill_ms` and
`first_token_ms` the least of each; `answer_tokens` are of every answer.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from array import array
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path

from stc.bundles.bundle import Bundle
from stc.runtime.answers.conversation import Conversation
from stc.runtime.answers.questions import Questions
from stc.runtime.answers.stream_language import open_stream_language
from stc.runtime.figures.metrics import StreamMetrics, compare_with_dense
from stc.runtime.memory import settings as memory_settings
from stc.runtime.show.live_table import LiveTable
from stc.runtime.stream import opening
from stc.runtime.stream.run import run_document
from stc.runtime.stream.session import StreamSession

STREET = Path(__file__).parent / "data" / "street.mp4"
PARTS = 8
ANSWER = 2
"""Text tokens of an answer."""


def rss_bytes() -> int:
    """Resident memory of this process now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("frames", type=int)
    parser.add_argument("--ask-every", type=int)
    memory_settings.add_flags(parser)
    flags = parser.parse_args()
    count = flags.frames
    bundle = Bundle.open(flags.bundle)
    spec, settings = bundle.manifest.vision, bundle.manifest.default_settings
    tower = opening.open_tower(bundle, "cpu")
    conversation = None
    if flags.ask_every is not None:
        memory, kept = memory_settings.from_flags(flags), settings.kept(spec.pooled)
        language = open_stream_language(bundle, tower.backend, memory, kept)
        told = Questions(most=ANSWER)
        conversation = Conversation(language, told, io.StringIO(), print)
    session = StreamSession(tower, settings, conversation.language if conversation else None)
    metrics = StreamMetrics(spec.tokens, spec.pooled)
    # Room for the measurements themselves, touched before the first is taken.
    resident, times = array("q", bytes(8 * count)), array("d", bytes(8 * count))
    prefill = array("d", bytes(8 * count))
    questions = count // (flags.ask_every or count + 1)
    first_token, answer_tokens = array("d", bytes(8 * questions)), array("q", bytes(8 * questions))
    frames = cycle(opening.frames(str(STREET), 8))
    with LiveTable(spec.tokens, spec.pooled, expected=count) as table:
        for index, frame in enumerate(islice(frames, count)):
            start = time.thread_time()
            report = session.push(frame)
            metrics.add(report)
            table.add(report)
            resident[index], times[index] = rss_bytes(), (time.thread_time() - start) * 1e3
            if conversation is not None and report.prefill is not None:
                prefill[index] = report.prefill.ms
                conversation.frame(report)
                if (index + 1) % flags.ask_every == 0:
                    conversation.ask("What is moving?")
                    newest, number = (
                        conversation.to_json()["questions"][-1],
                        index // flags.ask_every,
                    )
                    first_token[number] = newest["first_token_ms"]
                    answer_tokens[number] = newest["answer_tokens"]
    summary = metrics.summary()
    document = run_document(
        summary,
        settings=settings,
        bundle="demo",
        video="endless",
        backend=tower.backend.name,
        comparison=compare_with_dense(summary),
    )
    figures = {
        "frames": document["summary"]["frames"],
        "rss_bytes": _of_parts(resident, statistics.median),
        "fastest_ms": _of_parts(times, min),
    }
    if conversation is not None:
        figures |= {
            "prefill_ms": _of_parts(prefill, min),
            "first_token_ms": _of_parts(first_token, min),
            "answer_tokens": list(answer_tokens),
            "memory": conversation.to_json()["memory"],
        }
    print(json.dumps(figures))


def _of_parts(values: Sequence[float], figure: Callable[[Sequence[float]], float]) -> list[float]:
    """`figure` of each of PARTS equal parts of `values`."""
    edges = [len(values) * part // PARTS for part in range(PARTS + 1)]
    return [figure(values[first:last]) for first, last in pairwise(edges)]


if __name__ == "__main__":
    main()
