"""Chat templates rendered in a helper process, started when needed and ended with its owner.

A template is a program of somebody else's: it may never end, or ask for any amount of memory. So it
runs in no thread of ours: it cannot hold the interpreter's lock, take our memory, or keep us from
hearing Ctrl-C (docs/adr/0012-templates-in-a-process.md). The helper has transformers' environment
and may use little time and memory; it takes one request a line on stdin and gives one answer a line
on stdout, both JSON.
"""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from stc.errors import LanguageError, guarded

if TYPE_CHECKING:
    from jinja2 import Template

SUBJECT = "chat template"
FIX = "take the chat template of the model's processor"
MAX_BYTES = 512 << 20
"""Address space of the process, which takes 25 MB of it itself."""
MAX_CPU_S = 2.0
"""Processor time of one answer; the kernel ends the process by SIGPROF after it."""
MAX_WAIT_S = 60.0
"""Wall time; what counts is MAX_CPU_S, which other programs do not use up."""
LONGEST_PROMPT = 1_000_000
"""Characters."""
RUN = "import sys; sys.path[:] = sys.argv[1:]; import stc.prompts.template_process as t; t.main()"
"""The helper imports what its owner would, however that came by its sys.path."""


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
                answer = self._child.ask(json.dumps(request).encode() + b"\n")
            except BaseException:  # Ctrl-C, too: what it would answer next is unknown
                self._end_child()
                raise
        if answer["got"]:
            raise LanguageError(SUBJECT, answer["got"], fix=answer.get("fix", FIX))
        return answer["text"]

    @property
    def answers(self) -> bool:
        """Whether the helper outlived what it was asked last."""
        return self._child is not None

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """A running helper and the socket that leads to it."""

    def __init__(self) -> None:
        with guarded(SUBJECT, "its process cannot be started"):
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    # A session of its own: a terminal's Ctrl-C is for us, and we end the helper.
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

    def ask(self, request: bytes) -> dict[str, str]:
        """The answer to `request`. Raises LanguageError when there is none within MAX_WAIT_S."""
        until = time.monotonic() + MAX_WAIT_S
        received = bytearray()
        try:
            self.socket.settimeout(MAX_WAIT_S)
            self.socket.sendall(request)
            while not received.endswith(b"\n"):
                self.socket.settimeout(max(until - time.monotonic(), 0.001))
                piece = self.socket.recv(1 << 16)
                if not piece:
                    raise ConnectionError
                received += piece
        except TimeoutError as error:
            got = f"has not answered within {MAX_WAIT_S:.0f} s"
            raise LanguageError(SUBJECT, got, fix=FIX) from error
        except ConnectionError as error:
            raise _ended(self.process) from error
        answer: dict[str, str] = json.loads(received)
        return answer


def _end(process: subprocess.Popen[bytes], to_it: socket.socket) -> None:
    to_it.close()
    process.kill()
    process.wait()


def _ended(process: subprocess.Popen[bytes]) -> LanguageError:
    """Why the helper ended in the middle of an answer."""
    try:
        code = process.wait(MAX_WAIT_S)
    except subprocess.TimeoutExpired:
        return LanguageError(SUBJECT, "its process hangs", fix=FIX)
    if code == -signal.SIGPROF:
        got = f"takes more than {MAX_CPU_S:.0f} s to render"
        return LanguageError(SUBJECT, got, "milliseconds", FIX)
    return LanguageError(SUBJECT, f"its process ended by itself (exit {code})", fix=FIX)


def main() -> None:
    """The helper: requests are answered until stdin is closed."""
    # Both are inherited, and either would make the time limit void.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    missing = ""
    try:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401 (what the first answer's time should not be spent on)
    except Exception as error:
        missing = f"requires jinja2, which cannot be loaded ({error})"
    compiled: dict[str, Template] = {}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = min(one for one in (MAX_BYTES, soft, hard) if one != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        answer = {"got": missing, "fix": "pip install 'stc[language]'"}
        if not missing:
            answer = _answer(json.loads(line), compiled)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _answer(request: Mapping[str, Any], compiled: dict[str, Template]) -> dict[str, str]:
    """What a request comes to: its `text`, or what it `got` instead."""
    from jinja2 import TemplateError
    from jinja2.exceptions import TemplateSyntaxError

    text, got = "", ""
    try:
        template = compiled.get(request["template"])
        if template is None:
            compiled.clear()
            template = compile_template(request["template"], request["now"])
            compiled[request["template"]] = template
        pieces, length = [], 0
        for piece in template.generate(request["variables"]):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_PROMPT:
                got = f"makes a prompt of more than {LONGEST_PROMPT:,} characters"
                break
        else:
            text = "".join(pieces)
    except TemplateSyntaxError as error:
        got = f"cannot be read (line {error.lineno}: {error.message})"
    except TemplateError as error:
        got = f"refuses the question ({str(error)[:1000]})"
    except MemoryError:
        got = f"takes more than {MAX_BYTES >> 20} MB, where kilobytes will do"
    except Exception as error:
        got = f"cannot be rendered ({type(error).__name__}: {str(error)[:1000]})"
    return {"text": text, "got": got}


def compile_template(text: str, now: float) -> Template:
    """The template of `text`, to be rendered as transformers does.

    Sandboxed, blocks trimmed, loop controls, `raise_exception`, `tojson` as plain JSON, and the
    tags that mark what the assistant said. `strftime_now` tells `now`, seconds since the epoch:
    a prompt's start is remembered, so it must stay what it was. Raises jinja2's exceptions.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` renders to what stands between."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            said = self.call_method("said")
            return nodes.CallBlock(said, [], [], body, lineno=line)

        def said(self, caller: Any) -> Any:
            return caller()

    class PlainNamespace(Namespace):
        """A namespace without names that Python gives a meaning."""

        def __init__(*arguments: Any, **named: Any) -> None:  # a namespace may hold `self`
            held = dict(*arguments[1:], **named)
            for name in held:
                _check(name)
            Namespace.__init__(arguments[0], held)

        def __setitem__(self, name: str, value: Any) -> None:
            _check(name)
            super().__setitem__(name, value)

    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"the name {name!r} in a namespace")

    def refuse(message: str) -> str:
        raise TemplateError(message)

    def to_json(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes what HTML would take for markup.
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def strftime_now(format: str) -> str:
        return datetime.fromtimestamp(now).strftime(format)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = strftime_now
    environment.globals["namespace"] = PlainNamespace
    return environment.from_string(text)
