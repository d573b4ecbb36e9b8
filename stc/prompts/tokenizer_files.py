"""The tokenizer that transformers makes of a checkpoint's files, without transformers.

`tokenizer.json` is most of it. Tokens that only the files beside it name are added to it, and the
special ones among them have names that chat templates use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stc import optional
from stc.errors import LanguageError
from stc.prompts.chat_template import TOKENIZER_CONFIG
from stc.prompts.json_files import read_object
from stc.shell.boundary import guarded

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
    fields = read_object(files, TOKENIZER_CONFIG, name)
    if "added_tokens_decoder" not in fields:
        fields |= read_object(files, SPECIAL_MAP, name)
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
            by_id = sorted(read_object(files, ADDED, name).items(), key=lambda item: int(item[1]))
        return {
            content: {"special": content in special, "normalized": content not in special}
            for content, _ in by_id
        }
    return {
        token["content"]: {flag: bool(token[flag]) for flag in FLAGS if flag in token}
        for _, token in sorted(decoder.items(), key=lambda item: int(item[0]))
    }
