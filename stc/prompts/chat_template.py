"""A checkpoint's own chat template, found among its files as transformers' processors find it."""

from __future__ import annotations

from collections.abc import Mapping

from stc.errors import LanguageError
from stc.prompts.json_files import read_object, text_of

JINJA = "chat_template.jinja"
LEGACY = "chat_template.json"
PROCESSOR = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
FIELD = "chat_template"
DEFAULT = "default"
"""The name of the template to take where a file holds several."""


def find_template(files: Mapping[str, bytes], name: str) -> str:
    """The template among `files`, by name, of the checkpoint called `name`.

    A template of the processor goes before the tokenizer's, which may be one for text alone.
    Raises LanguageError when there is none, or the file that has it cannot be read.
    """
    held = _held(files, PROCESSOR, name)
    if held is None and LEGACY in files:
        held = _held(files, LEGACY, name)
    elif held is None and JINJA in files:
        held = text_of(files, JINJA, name)
    if held is None:
        held = _held(files, TOKENIZER_CONFIG, name)
    if held is None:
        raise LanguageError(
            name,
            "no chat template",
            f"{JINJA}, or one in {LEGACY}, {PROCESSOR} or {TOKENIZER_CONFIG}",
            "take the file of the model that this one was made from, and export again",
        )
    return held


def _held(files: Mapping[str, bytes], file: str, name: str) -> str | None:
    """The template in a JSON file, if it is there and has one."""
    found = read_object(files, file, name).get(FIELD)
    several = found
    if isinstance(found, list):  # as tokenizers save several
        several = {
            str(entry.get("name")): entry.get("template")
            for entry in found
            if isinstance(entry, dict)
        }
    if isinstance(several, dict):
        found = several.get(DEFAULT)
        if found is None:
            got = f"holds templates named {', '.join(sorted(map(str, several))) or 'nothing'}"
            raise LanguageError(f"{name}/{file}", got, f"one named {DEFAULT!r}", "name one so")
    if found is not None and not isinstance(found, str):
        got = f"{FIELD} is a {type(found).__name__}"
        raise LanguageError(f"{name}/{file}", got, "text", f"save it as {JINJA}")
    return found
