"""The helper process that renders chat templates, started when needed and ended with its owner.

A template runs in no thread of ours: it cannot hold the interpreter's lock, take our memory, or
keep us from hearing Ctrl-C (docs/adr/0012-templates-in-a-process.md).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from stc.errors import LanguageError
from stc.prompts.template_worker import LONGEST_PROMPT, MAX_BYTES, MAX_CPU_S
from stc.shell.boundary import guarded, printable

SUBJECT = "chat template"
FIX = "take the chat template of the model's processor"
MAX_START_S = 60.0
MAX_WAIT_S = 20.0
"""Wall time; what counts is the processor time MAX_CPU_S, which other programs do not use up."""
RUN = "import sys; sys.path[:] = sys.argv[1:]; from stc.prompts.template_worker import main; main()"
"""The worker imports what its owner would, however that came by its sys.path."""


class EndlessTemplateError(LanguageError):
    """A template that asks for too much of time, memory or text."""


class TemplateProcess:
    """Renders templates elsewhere; any thread may call it, one at a time is served.

    The process is started by the first call, and again after one that ended it. It ends with this
    object, and when this process does, however that comes about.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._now = time.time()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text of `template` with `variables`, which are made of JSON's types.

        Raises LanguageError when it cannot be rendered, or takes more than MAX_CPU_S of processor
        time, MAX_BYTES of memory or LONGEST_PROMPT characters.
        """
        request = {"template": template, "variables": variables, "now": self._now}
        with self._lock:
            if self._child is not None and self._child.process.poll() is not None:
                self._end_child()  # killed while nothing was asked of it
            try:
                self._child = self._child or _Child()
                answer = self._child.ask(json.dumps(request).encode() + b"\n", MAX_WAIT_S)
            except BaseException:  # Ctrl-C, too: what it would answer next is unknown
                self._end_child()
                raise
        if "text" in answer:
            return answer["text"]
        raise _refusal(answer["kind"], printable(answer["error"]))

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """A running worker and the socket that leads to it."""

    def __init__(self) -> None:
        with guarded(SUBJECT, "its process cannot be started"):
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    # A session of its own: a terminal's Ctrl-C is for us, and we end the worker.
                    self.process = subprocess.Popen(
                        [sys.executable, "-c", RUN, *map(str, sys.path)],
                        stdin=theirs.fileno(),
                        stdout=theirs.fileno(),
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
            except BaseException:
                ours.close()
                raise
        self.socket = ours
        self.end = weakref.finalize(self, _end, self.process, ours)
        try:
            failed = self.ask(b"", MAX_START_S)
        except BaseException:
            self.end()
            raise
        if failed:
            self.end()
            cause = printable(f"{failed['kind']}: {failed['error']}")
            fix = "pip install 'stc[language]'"
            raise LanguageError("questions", f"jinja2 cannot be loaded ({cause})", fix=fix)

    def ask(self, request: bytes, most_s: float) -> dict[str, str]:
        """The answer to `request`. Raises LanguageError when there is none within `most_s`."""
        until = time.monotonic() + most_s
        received = bytearray()
        try:
            self.socket.settimeout(most_s)
            self.socket.sendall(request)
            while not received.endswith(b"\n"):
                self.socket.settimeout(max(until - time.monotonic(), 0.001))
                piece = self.socket.recv(1 << 16)
                if not piece:
                    raise ConnectionError
                received += piece
        except TimeoutError as error:
            got = f"has not answered within {most_s:.0f} s"
            raise EndlessTemplateError(SUBJECT, got, fix=FIX) from error
        except ConnectionError as error:
            raise _ended(self.process) from error
        answer: dict[str, str] = json.loads(received)
        return answer


def _end(process: subprocess.Popen[bytes], to_it: socket.socket) -> None:
    to_it.close()
    process.kill()
    process.wait()


def _ended(process: subprocess.Popen[bytes]) -> LanguageError:
    """Why the worker ended in the middle of an answer."""
    try:
        code = process.wait(MAX_WAIT_S)
    except subprocess.TimeoutExpired:
        return EndlessTemplateError(SUBJECT, "its process hangs", fix=FIX)
    if code == -signal.SIGPROF:
        got = f"takes more than {MAX_CPU_S:.0f} s to render"
        return EndlessTemplateError(SUBJECT, got, "milliseconds", FIX)
    got = f"its process ended by itself (exit {code})"
    return EndlessTemplateError(SUBJECT, got, fix=FIX)


def _refusal(kind: str, error: str) -> LanguageError:
    """What to tell of an exception in the worker."""
    if kind == "syntax":
        return LanguageError(SUBJECT, f"cannot be read ({error})", fix=FIX)
    if kind == "refusal":
        return LanguageError(SUBJECT, f"refuses the question ({error})", fix=FIX)
    if kind == "memory":
        got = f"takes more than {MAX_BYTES >> 20} MB"
        return EndlessTemplateError(SUBJECT, got, "kilobytes", FIX)
    if kind == "length":
        most = f"at most {LONGEST_PROMPT:,} characters"
        return EndlessTemplateError(SUBJECT, "makes an endless prompt", most, FIX)
    return LanguageError(SUBJECT, f"cannot be rendered ({kind}: {error})", fix=FIX)
