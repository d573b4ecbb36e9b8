"""`stc-run`: stream a video or camera through a bundle and show what STC saves."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from stc import settings
from stc.bundles.bundle import Bundle
from stc.errors import DeviceError, SettingsError, StcError, VideoError
from stc.manifest import VisionSpec
from stc.method.family import frame_macs
from stc.runtime.answers import questions
from stc.runtime.answers.conversation import Conversation
from stc.runtime.answers.questions import HINT, Chat, Questions
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.evaluate.question_file import read_questions
from stc.runtime.figures.metrics import compare_with_dense
from stc.runtime.memory import settings as memory_settings
from stc.runtime.memory.settings import WINDOW, MemorySettings
from stc.runtime.output import STDOUT, document_output, refuse_shared_paths
from stc.runtime.show.live_table import LiveTable, print_summary
from stc.runtime.show.overlay import OverlayWriter
from stc.runtime.stream import opening
from stc.runtime.stream.run import DenseRun, EndedBy, StreamRun, run_document
from stc.runtime.stream.session import StreamSession
from stc.runtime.stream.stream import open_stream
from stc.runtime.video import open as video
from stc.shell import command
from stc.shell.command import Console, stdout_outlived

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
    video.add_flags(parser)
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
        help="run every frame dense as well, in turns, and compare time, tokens and answers",
    )
    settings.add_flags(parser)
    questions.add_flags(parser)
    memory_settings.add_flags(parser)
    opening.add_weights_flag(parser)
    return parser.parse_args(arguments)


def _run(flags: argparse.Namespace) -> int:
    opening.check_device(flags.device, flags.backend, flags.weights)
    asked, memory = _asked(flags)
    still = flags.overlay and flags.overlay.parent / f"{flags.overlay.stem}{STILL}"
    if still is not None and still.is_dir():
        fix = "move it away, or choose another --overlay"
        raise SettingsError("the still of --overlay", f"{still} is a folder", "a file", fix)
    outputs = {"--overlay": flags.overlay, "the still of --overlay": still, "--json": flags.json}
    inputs = {} if flags.questions is None else {"--questions": [flags.questions]}
    refuse_shared_paths(outputs, video=flags.video, bundle=flags.bundle, inputs=inputs)
    chat = Chat() if flags.chat else None
    bundle = Bundle.open(flags.bundle)
    spec = bundle.manifest.vision
    chosen = settings.from_flags(flags, bundle.manifest.default_settings, spec.pooled)
    console = Console(stderr=True)
    say = console.say

    failures: list[StcError] = []
    # The device is given back last: it takes time, and may fail.
    with _stdout_of(flags), ExitStack() as device, document_output(flags.json) as write:
        with ExitStack() as stack:
            source = stack.enter_context(video.open_source(flags))
            if source.notice is not None:
                say(source.notice)
            overlay = stack.enter_context(_overlay(flags.overlay, spec, failures))
            streams = 2 if flags.compare_dense else 1
            opened = open_stream(
                bundle, chosen, memory, flags.device, flags.backend, flags.weights, streams
            )
            device.callback(opened.close)
            session, conversation, dense = opened.session, None, None
            if flags.compare_dense:
                dense = DenseRun(session.tower, _dense_language(session, memory))
            if session.language is not None:
                also = None if dense is None else dense.ask
                conversation = Conversation(session.language, asked, sys.stdout, say, chat, also)
            if chat is not None:
                say(HINT)
                chat.invite()
            stream = StreamRun(
                source,
                session,
                say,
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
                say(f"{_ENDINGS[stream.ended_by]}; this is the stream so far")
        if overlay is not None and not failures:
            _save_still(overlay, still, failures)
        if stream.failure is not None:
            failures.append(stream.failure)
        if conversation is not None and not isinstance(stream.failure, DeviceError):
            try:
                conversation.ask_rest()
            except KeyboardInterrupt:
                command.stop_handled()
                say("interrupted; these are the answers so far")
        summary = stream.summary()
        macs = frame_macs(spec, session.tower.precision, chosen)
        comparison = compare_with_dense(summary, dense.summary() if dense else None, macs)
        print_summary(console, summary, comparison)
        told = [] if dense is None else dense.lines()
        told += [] if conversation is None else conversation.lines()
        for line in told:
            say(line)
        document = run_document(
            summary,
            settings=chosen,
            video=source.name,
            backend=session.tower.backend.name,
            weights=flags.weights,
            bundle=bundle.manifest.provenance.checkpoint,
            ended_by=stream.ended_by,
            comparison=comparison,
        )
        document["fidelity"] = None if dense is None else dense.fidelity()
        document["language"] = None if conversation is None else conversation.to_json()
        if conversation is not None:
            document["language"]["dense"] = None if dense is None else dense.language()
        try:
            write(document)
        except OSError:  # of stdout, which is told then; what went wrong before is as well
            for failure in failures:
                say(f"error: {failure}")
            raise
    for failure in failures[:-1]:
        say(f"error: {failure}")
    if failures:
        raise failures[-1]
    if conversation is None:
        return 0
    errors = [conversation.error]
    if stream.ended_by != "interrupt":
        errors.append(conversation.missed)
    if dense is not None and dense.error is not None:
        errors.append(StcError("dense", str(dense.error)))
    # Told before or not, the last line says why the command ends with 2.
    if (error := next(filter(None, errors), None)) is not None:
        raise error
    return 0


def _dense_language(session: StreamSession, memory: MemorySettings | None) -> StreamLanguage | None:
    """The language side of the dense stream beside `session`; None without questions.

    Its window has room for as many frames, as far as the model has positions.
    """
    if session.language is None or memory is None:
        return None
    pooled = session.tower.spec.pooled
    if memory.memory != "all":
        least, window = memory.window or 1, memory.window or WINDOW
        most = session.language.model.spec.max_positions // 2
        longer = max(least, min(window * pooled // session.kept, most))
        memory = replace(memory, window=longer)
    return session.language.beside(memory, pooled)


def _stdout_of(flags: argparse.Namespace) -> AbstractContextManager[None]:
    """Entered while stdout is written to, which ends a run that has no other results."""
    files = flags.overlay is not None or flags.json not in (None, STDOUT)
    return stdout_outlived() if files else nullcontext()


@contextmanager
def _overlay(
    path: Path | None, spec: VisionSpec, failures: list[StcError]
) -> Iterator[OverlayWriter | None]:
    """The overlay at `path`, None without one; that it cannot be ended is one of `failures`."""
    if path is None:
        yield None
        return
    with ExitStack() as stack:
        yield stack.enter_context(OverlayWriter(path, spec.grid, spec.covered))
        try:
            stack.close()
        except VideoError as error:
            failures.append(error)


def _save_still(overlay: OverlayWriter, path: Path, failures: list[StcError]) -> None:
    try:
        overlay.save_still(path)
    except VideoError as error:
        failures.append(error)


def _asked(flags: argparse.Namespace) -> tuple[Questions, MemorySettings | None]:
    """The questions of the run, and the memory they are answered from, None without any.

    Raises SettingsError for a flag out of range, or of questions without one.
    """
    listed = () if flags.questions is None else read_questions(flags.questions)
    asked, memory = questions.from_flags(flags, listed), memory_settings.from_flags(flags)
    if asked.asked or flags.chat:
        return asked, memory
    for name in (*questions.ANSWERING, *memory_settings.NAMES):
        if getattr(flags, name) not in (None, False):
            flag = f"--{name.replace('_', '-')}"
            raise SettingsError(flag, "requires --ask, --ask-at, --questions or --chat")
    return asked, None


if __name__ == "__main__":
    sys.exit(main())
