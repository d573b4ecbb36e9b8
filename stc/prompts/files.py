"""A checkpoint's text files: read, and the tokenizer and chat template that transformers takes.

`tokenizer.json` is most of the tokenizer. Tokens that only the files beside it name are added to
it, and the special ones among them have names that chat templates use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stc import optional
from stc.errors import LanguageError, StcError, guarded

TOKENIZER = "tokenizer.json"
SPECIAL_MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
SLOW = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
MAKE_ONE = (
    "make it with transformers, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR), "
    "and export again"
)
NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
QWEN2 = "Qwen2Tokenizer"
QWEN2_TOKENS = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")
"""What that class takes for names the files leave out."""
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

JINJA = "chat_template.jinja"
LEGACY = "chat_template.json"
PROCESSOR = "processor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
FIELD = "chat_template"
DEFAULT = "default"
"""The name of the template to take where a file holds several."""

SAVE = "save it as UTF-8, without a byte order mark"


def parse_text(subject: object, content: bytes, error: type[StcError]) -> str:
    """`content` as text. Raises `error` about `subject` unless it is UTF-8 without NUL."""
    try:
        text = content.decode()
    except UnicodeDecodeError as cause:
        got = f"not UTF-8 (byte {cause.start} is {content[cause.start]:#04x})"
        raise error(subject, got, "text in UTF-8", SAVE) from cause
    if "\0" in text:
        raise error(subject, "holds NUL", "text in UTF-8", "download or copy it again")
    return text


def parse_object(subject: object, content: bytes, error: type[StcError]) -> dict[str, Any]:
    """The JSON object `content` is.

    Raises `error` about `subject` when it is none: no text, not JSON, nested without end, with a
    key twice in one object (readers differ in which value they take), or another value.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                got = f"holds the key {repr(key)[:80]} twice in one object"
                raise error(subject, got, "every key once", "keep the right one")
            found[key] = value
        return found

    text = parse_text(subject, content, error)
    fix = SAVE if text.startswith("\ufeff") else "download or copy it again"
    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as cause:
        raise error(subject, f"not valid JSON ({cause})", fix=fix) from cause
    if not isinstance(value, dict):
        raise error(subject, f"holds a {type(value).__name__}", "a JSON object", fix)
    return value


@dataclass(frozen=True)
class TokenizerFiles:
    """An opened tokenizer and what the files say of its special tokens.

    tokenizer: a tokenizers.Tokenizer that neither truncates nor pads.
    named: special tokens by the names that templates use, such as `eos_token`.
    base: the highest id in tokenizer.json itself.
    """

    tokenizer: Any
    named: dict[str, str]
    base: int


def open_tokenizer(files: Mapping[str, bytes], name: str) -> TokenizerFiles:
    """The tokenizer among `files`, by name, of the checkpoint called `name`.

    Raises LanguageError when there is none or it cannot be read, or the language extra is not
    installed.
    """
    if TOKENIZER not in files:
        slow = ", ".join(file for file in SLOW if file in files)
        only = f" (only {slow})" if slow else ""
        raise LanguageError(name, f"no {TOKENIZER}, so no questions{only}", fix=MAKE_ONE)
    for library in ("tokenizers", "jinja2"):
        fix = "pip install 'stc[language]'"
        optional.load(library, library, subject="questions", fix=fix, error=LanguageError)
    tokenizers: Any = import_module("tokenizers")
    with guarded(f"{name}/{TOKENIZER}", "cannot be read", "copy it again"):
        tokenizer = tokenizers.Tokenizer.from_buffer(files[TOKENIZER])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        base = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    fields = _fields(files, name)
    named, others = _special(fields)
    with guarded(f"{name}/{TOKENIZER_CONFIG}", "its added tokens cannot be read", "copy it again"):
        missing = _listed(files, fields, named, name)
        known = {token.content for token in _added(tokenizer)} | missing.keys()
        for content in (*named.values(), *others):
            if content not in known:
                missing[content] = {"special": True}
        if str(fields.get("tokenizer_class")).removesuffix("Fast") == QWEN2:
            missing |= {content: {"special": True} for content in (*named.values(), *others)}
        tokens = [tokenizers.AddedToken(text, **flags) for text, flags in missing.items()]
        as_they_are = set(map(repr, _added(tokenizer)))
        tokenizer.add_tokens([token for token in tokens if repr(token) not in as_they_are])
    return TokenizerFiles(tokenizer, named, base)


def _added(tokenizer: Any) -> list[Any]:
    return list(tokenizer.get_added_tokens_decoder().values())


def _fields(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """The tokenizer's configuration; an old one is completed by special_tokens_map.json."""
    fields = _object(files, TOKENIZER_CONFIG, name)
    if "added_tokens_decoder" not in fields:
        fields |= _object(files, SPECIAL_MAP, name)
    if str(fields.get("tokenizer_class")).removesuffix("Fast") == QWEN2:
        fields = QWEN2_TOKENS | fields
    return fields


def _special(fields: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The special tokens with a name, and those without."""
    extra = fields.get("extra_special_tokens") or fields.get("additional_special_tokens") or []
    others = [key for key in fields if key.endswith("_token") and key not in NAMES]
    named = {key: _content(fields.get(key)) for key in (*NAMES, *others)}
    for held in (fields.get("model_specific_special_tokens"), extra):
        if isinstance(held, dict):
            named |= {key: _content(value) for key, value in held.items()}
    listed = map(_content, extra) if isinstance(extra, list) else ()
    return (
        {key: content for key, content in named.items() if content is not None},
        [content for content in listed if content is not None],
    )


def _content(token: Any) -> str | None:
    """The text of a token that is written as such or with its flags."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _listed(
    files: Mapping[str, bytes], fields: Mapping[str, Any], named: Mapping[str, str], name: str
) -> dict[str, dict[str, bool]]:
    """Tokens that the files list with an id, in its order, and their flags."""
    decoder = fields.get("added_tokens_decoder")
    if decoder is None:
        special = set(named.values())
        with guarded(f"{name}/{ADDED}", "cannot be read", "copy it again"):
            by_id = sorted(_object(files, ADDED, name).items(), key=lambda item: int(item[1]))
        return {
            content: {"special": content in special, "normalized": content not in special}
            for content, _ in by_id
        }
    return {
        token["content"]: {flag: bool(token[flag]) for flag in FLAGS if flag in token}
        for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))
    }


def find_template(files: Mapping[str, bytes], name: str) -> str:
    """The template among `files`, by name, of the checkpoint called `name`.

    A template of the processor goes before the tokenizer's, which may be one for text alone.
    Raises LanguageError when there is none, or the file that has it cannot be read.
    """
    held = _held(files, PROCESSOR, name)
    if held is None and LEGACY in files:
        held = _held(files, LEGACY, name)
    elif held is None and JINJA in files:
        held = parse_text(f"{name}/{JINJA}", files[JINJA], LanguageError)
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


def _object(files: Mapping[str, bytes], file: str, name: str) -> dict[str, Any]:
    """The JSON object in `file`; an empty one where there is no such file."""
    return parse_object(f"{name}/{file}", files.get(file, b"{}"), LanguageError)


def _held(files: Mapping[str, bytes], file: str, name: str) -> str | None:
    """The template in a JSON file, if it is there and has one."""
    found = _object(files, file, name).get(FIELD)
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
