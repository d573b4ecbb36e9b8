"""`stc-run`: stream a video or camera through a bundle and show what STC saves."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from stc import command, settings
from stc.bundle import Bundle
from stc.command import Console
from stc.engines.plan import context_rows
from stc.errors import SettingsError
from stc.runtime import memory_settings, questions, source_flags
from stc.runtime import open as opening
from stc.runtime.chat import HINT, Chat
from stc.runtime.comparison import compare_with_dense
from stc.runtime.conversation import Conversation
from stc.runtime.document_output import document_output
from stc.runtime.fidelity import Fidelity
from stc.runtime.frame import Frame
from stc.runtime.live_table import LiveTable
from stc.runtime.metrics import StreamMetrics
from stc.runtime.open_language import open_stream_language
from stc.runtime.output_paths import refuse_shared_paths
from stc.runtime.overlay import OverlayWriter
from stc.runtime.run_document import run_document
from stc.runtime.summary import print_summary
from stc.runtime.taken_frames import TakenFrames
from stc.runtime.tower import VisionTower
from stc.settings import PRESETS, Settings

OVERLAY_FPS = 5.0
"""Frames per second of an overlay whose source names no rate."""
PIECES = 4
"""Pieces of an answer between two frames of a live source, which does not wait."""
TYPED_S = 0.1
"""Seconds after which a question that was typed is noticed, though no frame came."""
STILL = ".png"
"""Ending of the still that is saved beside an overlay."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Ctrl-C ends the stream, not the command."""
    return command.run(lambda: _run(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-run", description=__doc__)
    opening.add_flags(parser)
    source_flags.add_flags(parser)
    parser.add_argument("--overlay", type=Path, metavar="OUT.mp4", help="draw what was computed")
    parser.add_argument("--json", metavar="OUT", help="file, or - for the last line of stdout")
    parser.add_argument(
        "--compare-dense",
        action="store_true",
        help="run every frame dense as well, in turns, and compare time and tokens",
    )
    settings.add_flags(parser)
    questions.add_flags(parser)
    memory_settings.add_flags(parser)
    opening.add_int4_flag(parser)
    return parser.parse_args(arguments)


def _run(flags: argparse.Namespace) -> int:
    if flags.frames is not None and flags.frames < 1:
        raise SettingsError("--frames", f"got {flags.frames}", "at least 1")
    opening.refuse_idle_device(flags)
    still = flags.overlay and flags.overlay.parent / f"{flags.overlay.stem}{STILL}"
    outputs = {"--overlay": flags.overlay, "the still of --overlay": still, "--json": flags.json}
    refuse_shared_paths(outputs, video=flags.video, bundle=flags.bundle)
    bundle = Bundle.open(flags.bundle)
    manifest = bundle.manifest
    spec = manifest.vision
    chosen = settings.from_flags(flags, manifest.default_settings, spec.pooled)
    console = Console(stderr=True)
    with document_output(flags.json) as write:
        with ExitStack() as stack:
            source = stack.enter_context(source_flags.open_source(flags))
            overlay = None
            if flags.overlay is not None:
                rate = flags.fps or source.rate or OVERLAY_FPS
                overlay = stack.enter_context(
                    OverlayWriter(
                        flags.overlay, spec.side, spec.pooled_side, rate, covered=spec.covered
                    )
                )
            streams = 2 if flags.compare_dense else 1
            tower = opening.open_tower(
                bundle, flags.device, flags.backend, streams=streams, context=_context(flags)
            )
            chat = Chat() if flags.chat else None
            conversation = _conversation(bundle, tower, chosen, flags, console, chat)
            if chat is not None:
                console.print(HINT)
                chat.invite()
            language = None if conversation is None else conversation.language
            session = opening.open_session(tower, chosen, language)
            metrics = StreamMetrics(spec.tokens, spec.pooled)
            dense = opening.open_session(tower, PRESETS["off"]) if flags.compare_dense else None
            dense_metrics = StreamMetrics(spec.tokens, spec.pooled)
            fidelity = Fidelity()
            frames = TakenFrames(source, flags.frames)
            table = stack.enter_context(
                LiveTable(
                    spec.tokens,
                    spec.pooled,
                    expected=frames.expected,
                    console=console if chat is None else Console(quiet=True, file=io.StringIO()),
                )
            )
            if conversation is not None:
                conversation.aside = table.aside
            start = time.perf_counter()
            try:
                for frame in _meanwhile(frames, conversation):
                    # A frame is in the metrics, the table and the overlay, or in none of them.
                    with command.uninterrupted():
                        report = session.push(frame)
                        metrics.add(report)
                        table.count(
                            dropped_frames=source.dropped,
                            broken_frames=source.broken,
                            reconnects=source.reconnects,
                        )
                        table.add(report)
                        if dense is not None:
                            dense_report = dense.push(frame)
                            dense_metrics.add(dense_report)
                            fidelity.add(report, dense_report)
                        if overlay is not None:
                            overlay.add(frame, report)
                        if conversation is not None:
                            conversation.frame(report)
                    if conversation is not None:
                        _give_answers(conversation, PIECES if source.is_live else None)
            except KeyboardInterrupt:
                if not metrics.summary().frames:
                    raise
                frames.ended_by = "interrupt"
                console.print("interrupted; this is the stream so far")
            if frames.loss is not None:
                console.print("the source was lost; this is the stream so far")
            wall_s = time.perf_counter() - start
        if conversation is not None:
            try:
                conversation.ask_rest()
            except KeyboardInterrupt:
                console.print("interrupted; these are the answers so far")
        if overlay is not None:
            overlay.save_still(still)
        summary = metrics.summary(
            wall_s=wall_s,
            broken_frames=source.broken,
            dropped_frames=source.dropped,
            reconnects=source.reconnects,
            oldest_frame_ms=source.oldest_ms,
        )
        comparison = compare_with_dense(summary, dense_metrics.summary() if dense else None)
        print_summary(console, summary, comparison)
        if dense is not None:
            console.print(fidelity.line(), highlight=False, soft_wrap=True)
        for line in conversation.lines() if conversation is not None else ():
            console.print(line, highlight=False, soft_wrap=True)
        document = run_document(
            summary,
            settings=chosen,
            bundle=manifest.provenance.checkpoint,
            ended_by=frames.ended_by,
            comparison=comparison,
        )
        document["fidelity"] = fidelity.to_json() if dense is not None else None
        document["language"] = conversation.to_json() if conversation is not None else None
        write(document)
    if frames.loss is not None:
        raise frames.loss
    return 2 if conversation is not None and (conversation.failed or conversation.left_out) else 0


def _context(flags: argparse.Namespace) -> int:
    """Rows of keys and values on the device; 0 where nothing is asked of it."""
    if flags.int4 or not (flags.chat or questions.from_flags(flags).asked):
        return 0
    return context_rows(memory_settings.from_flags(flags).window)


def _conversation(
    bundle: Bundle,
    tower: VisionTower,
    chosen: Settings,
    flags: argparse.Namespace,
    console: Console,
    chat: Chat | None,
) -> Conversation | None:
    """The questions of the run and the language side that answers them; None without any."""
    asked, memory = questions.from_flags(flags), memory_settings.from_flags(flags)
    if not asked.asked and not flags.chat:
        for name in (*questions.ANSWERING, *memory_settings.NAMES, "int4"):
            if getattr(flags, name) not in (None, False):
                flag = f"--{name.replace('_', '-')}"
                raise SettingsError(flag, "given", "--ask, --ask-at or --chat beside it")
        return None
    kept = chosen.kept(bundle.manifest.vision.pooled)
    backend = opening.language_backend(bundle, tower, flags.device, int4=flags.int4)
    language = open_stream_language(bundle, backend, memory, kept)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return Conversation(language, asked, sys.stdout, say, chat)


def _meanwhile(frames: TakenFrames, conversation: Conversation | None) -> Iterator[Frame]:
    """`frames`; while none is there, questions are asked and answers go on."""
    while True:
        if conversation is not None:
            while not frames.wait(0.0 if conversation.answering else TYPED_S):
                conversation.advance()
        try:
            frame = next(frames)
        except StopIteration:
            return
        yield frame


def _give_answers(conversation: Conversation, pieces: int | None) -> None:
    """Questions due or typed are asked and answered, `pieces` of text at most; all when None."""
    for _ in count() if pieces is None else range(pieces):
        if not conversation.advance():
            return


if __name__ == "__main__":
    sys.exit(main())
