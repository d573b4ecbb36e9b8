"""A checkpoint's own chat template, found among its files and rendered as transformers does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stc.errors import LanguageError

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser

Messages = list[dict[str, Any]]

JINJA = "chat_template.jinja"
HOLDERS = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
DEFAULT = "default"
"""The name of the template to take where a file holds several."""


def read_template(root: Path) -> str:
    """The template of the checkpoint whose files lie in `root`.

    Raises LanguageError when there is none.
    """
    if (root / JINJA).is_file():
        return (root / JINJA).read_text(encoding="utf-8")
    for name in HOLDERS:
        file = root / name
        found = _held(file) if file.is_file() else None
        if found is not None:
            return found
    raise LanguageError(
        root,
        "no chat template",
        f"{JINJA}, or one in {' or '.join(HOLDERS)}",
        "export again from a checkpoint that has it",
    )


def template_renderer(template: str) -> Callable[[Messages], str]:
    """A function that renders messages, with the prompt for the answer at the end.

    It raises LanguageError when the template does. The environment is transformers': sandboxed,
    blocks trimmed, loop controls, and the tags it uses to mark what the assistant said.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}` renders to what stands between."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's interface)

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    try:
        compiled = environment.from_string(template)
    except TemplateSyntaxError as error:
        raise LanguageError(
            "chat template", f"cannot be read ({error})", mend="export again from the checkpoint"
        ) from error

    def render(messages: Messages) -> str:
        try:
            return compiled.render(messages=messages, add_generation_prompt=True)
        except TemplateError as error:
            raise LanguageError("chat template", f"refuses the question ({error})") from error

    return render


def _held(file: Path) -> str | None:
    """The template in a JSON file of the checkpoint, if it has one."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LanguageError(file, f"not valid JSON ({error})", mend="copy it again") from error
    found = held.get("chat_template") if isinstance(held, dict) else None
    if isinstance(found, list):
        by_name = {entry.get("name"): entry.get("template") for entry in found}
        found = by_name.get(DEFAULT)
    return found if isinstance(found, str) else None
