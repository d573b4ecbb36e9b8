"""`stc-run`: stream a video or camera through a bundle and show what STC saves."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

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
from stc.runtime.dense_run import DenseRun
from stc.runtime.document_output import document_output
from stc.runtime.live_table import LiveTable
from stc.runtime.open_language import open_stream_language
from stc.runtime.output_paths import refuse_shared_paths
from stc.runtime.overlay import OverlayWriter
from stc.runtime.run_document import run_document
from stc.runtime.stream_run import StreamRun
from stc.runtime.summary import print_summary
from stc.runtime.taken_frames import EndedBy
from stc.runtime.tower import VisionTower
from stc.settings import Settings

OVERLAY_FPS = 5.0
"""Frames per second of an overlay whose source names no rate."""
STILL = ".png"
"""Ending of the still that is saved beside an overlay."""
_ENDINGS: Final[dict[EndedBy, str]] = {
    "interrupt": "interrupted",
    "loss": "the source was lost",
    "error": "a frame could not be computed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code. Ctrl-C ends the stream, not the command."""
    return command.run(lambda: _run(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-run", description=__doc__)
    opening.add_flags(parser)
    source_flags.add_flags(parser)
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="OUT.mp4",
        help="draw what was computed, and a still .png beside it",
    )
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
            tower = opening.open_tower(
                bundle,
                flags.device,
                flags.backend,
                streams=2 if flags.compare_dense else 1,
                context=_context(flags),
            )
            chat = Chat() if flags.chat else None
            conversation = _conversation(bundle, tower, chosen, flags, console, chat)
            if chat is not None:
                console.print(HINT)
                chat.invite()
            language = None if conversation is None else conversation.language
            session = opening.open_session(tower, chosen, language)
            dense = DenseRun(tower) if flags.compare_dense else None
            stream = StreamRun(
                source,
                session,
                most=flags.frames,
                dense=dense,
                overlay=overlay,
                conversation=conversation,
            )
            table = stack.enter_context(
                LiveTable(
                    spec.tokens,
                    spec.pooled,
                    expected=stream.expected,
                    console=console if chat is None else Console(quiet=True, file=io.StringIO()),
                )
            )
            if conversation is not None:
                conversation.aside = table.aside
            stream.take(table)
            if stream.ended_by in _ENDINGS:
                console.print(f"{_ENDINGS[stream.ended_by]}; this is the stream so far")
        if conversation is not None:
            try:
                conversation.ask_rest()
            except KeyboardInterrupt:
                console.print("interrupted; these are the answers so far")
        if overlay is not None:
            overlay.save_still(still)
        summary = stream.summary()
        comparison = compare_with_dense(summary, dense.summary() if dense else None)
        print_summary(console, summary, comparison)
        told = [] if dense is None else [dense.fidelity.line()]
        told += [] if conversation is None else conversation.lines()
        for line in told:
            console.print(line, highlight=False, soft_wrap=True)
        document = run_document(
            summary,
            settings=chosen,
            bundle=manifest.provenance.checkpoint,
            ended_by=stream.ended_by,
            comparison=comparison,
        )
        document["fidelity"] = None if dense is None else dense.fidelity.to_json()
        document["language"] = None if conversation is None else conversation.to_json()
        write(document)
    if stream.failure is not None:
        raise stream.failure
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


if __name__ == "__main__":
    sys.exit(main())
