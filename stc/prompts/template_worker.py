"""Chat templates rendered in transformers' environment, by a process of its own.

A template is a program of somebody else's: it may never end, or ask for any amount of memory. So
this runs in a helper process (`template_process` beside it) that may use little of either, and
imports jinja2 only where it renders.

One request a line on stdin, one answer a line on stdout, both JSON.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template

MAX_BYTES = 512 << 20
"""Address space of the process, which takes 25 MB of it itself."""
MAX_CPU_S = 2.0
"""Processor time of one answer; the kernel ends the process by SIGPROF after it."""
LONGEST_PROMPT = 1_000_000
"""Characters."""


def main() -> None:
    """Answers requests until stdin is closed."""
    # Both are inherited, and either would make the time limit void.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    compiled: dict[str, Template] = {}
    _tell(_loaded())
    resource.setrlimit(resource.RLIMIT_AS, _lowered(resource.RLIMIT_AS, MAX_BYTES))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)
        answer = _answer(json.loads(line), compiled)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        _tell(answer)


def _loaded() -> dict[str, str]:
    """Imports what a first question would wait for otherwise."""
    try:
        import jinja2.ext
        import jinja2.sandbox  # noqa: F401
    except Exception as error:
        return {"kind": type(error).__name__, "error": str(error)}
    return {}


def _answer(request: Mapping[str, Any], compiled: dict[str, Template]) -> dict[str, str]:
    """What a request comes to: `text`, or `kind` and `error` of an exception."""
    from jinja2 import TemplateError
    from jinja2.exceptions import TemplateSyntaxError

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
                return {"kind": "length", "error": ""}
        return {"text": "".join(pieces)}
    except TemplateSyntaxError as error:
        return {"kind": "syntax", "error": f"line {error.lineno}: {error.message}"}
    except TemplateError as error:
        return {"kind": "refusal", "error": str(error)[:1000]}
    except MemoryError:
        return {"kind": "memory", "error": ""}
    except Exception as error:
        return {"kind": type(error).__name__, "error": str(error)[:1000]}


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


def _lowered(kind: int, most: int) -> tuple[int, int]:
    """The limits of `kind` with the soft one at `most` or below."""
    soft, hard = resource.getrlimit(kind)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    return min([most, *known]), hard


def _tell(answer: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
