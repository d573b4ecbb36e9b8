"""Questions as text tokens, text tokens as text: the checkpoint's tokenizer and chat template.

A prompt is text tokens, the video, text tokens. Those before the video are the same for every
question: they are remembered once, when the stream starts.

Some tokens have a meaning of their own: those the tokenizer's files add to its vocabulary, the
video's among them. A template writes them; a user who types one has typed letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import LanguageError, guarded
from stc.manifest import LanguageSpec
from stc.prompts.files import TOKENIZER, TokenizerFiles, find_template, open_tokenizer
from stc.prompts.template_process import TemplateProcess

SAMPLES = ("What is in the video?", "Who came in last?")
"""Questions to find out what every prompt starts with, and that it holds the question."""
LONGEST_QUESTION = 100_000
"""Characters; several times what a model has positions for."""
OTHER = "take tokenizer and chat template of the same model, and export again"
STAND_INS = range(0xF0000, 0xFFFFE)
"""Letters without a meaning, of a plane that is kept for private use."""
MAX_ROUNDS = 4
"""How often a question is searched; what is left then is found out by its prompt."""


@dataclass(frozen=True)
class Typed:
    """A question as a template is to see it: letters stand for parts that spell tokens.

    stand_ins: such parts and the letter for each, in the order in which they were replaced.
    """

    text: str
    stand_ins: tuple[tuple[str, str], ...]


class PromptTokens:
    """What turns prompts into text tokens; `meant` adds ids to those with a meaning.

    Raises LanguageError when the tokenizer fails.
    """

    def __init__(self, files: TokenizerFiles, meant: tuple[int, ...] = ()) -> None:
        self._tokenizer = files.tokenizer
        self._start = files.named.get("bos_token")
        with guarded("tokenizer", "fails"):
            added = self._tokenizer.get_added_tokens_decoder()
            unknown = getattr(self._tokenizer.model, "unk_token", None)
        # White space is added by some tokenizers, unknown letters become a token: neither says
        # anything about the prompt's parts.
        self._meant = {
            index
            for index, token in added.items()
            if token.content != unknown and not token.content.isspace()
        }
        self._meant.update(meant)
        self._contents = "".join(token.content for token in added.values())
        self._special = [token.content for token in added.values() if token.special]

    def typed(self, question: str) -> Typed:
        """`question` with letters for what would become tokens with a meaning of their own.

        Raises LanguageError for a special token: who types one asks for it, and cannot have it.
        """
        for token in self._special:
            if token in question:
                raise _forged(token)
        taken = set(question + self._contents)
        free = (letter for code in STAND_INS if (letter := chr(code)) not in taken)
        stand_ins: list[tuple[str, str]] = []
        # More than once: some tokens are some only between words, and these letters are none.
        for _ in range(MAX_ROUNDS):
            parts = self._spelled(question)
            if not parts:
                break
            for part, letter in zip(sorted(parts, key=len, reverse=True), free, strict=False):
                question = question.replace(part, letter)
                stand_ins.append((part, letter))
        return Typed(question, tuple(stand_ins))

    def _spelled(self, question: str) -> set[str]:
        """Parts of `question` that would become tokens with a meaning of their own."""
        with guarded("tokenizer", "fails on the question"):
            encoding = self._tokenizer.encode(question, add_special_tokens=False)
        found = zip(encoding.ids, encoding.offsets, strict=True)
        spans = [span for index, span in found if index in self._meant]
        return {question[start:end] for start, end in spans if start < end}

    def encode(self, prompt: str, typed: Typed) -> tuple[list[int], list[int]]:
        """The text tokens of `prompt`, made with the question `typed`, and those with a meaning.

        Where nothing stands for a part of it they are those of a transformers processor.
        """
        start = self._start
        bare = start is not None and prompt.startswith(start)
        with guarded("tokenizer", "fails on the prompt"):
            encoding = self._tokenizer.encode(prompt, add_special_tokens=not bare)
        meant = [index for index in encoding.ids if index in self._meant]
        if not typed.stand_ins:
            return encoding.ids, meant
        appended = encoding.special_tokens_mask
        front = appended.index(0) if 0 in appended else len(appended)
        ids: list[int] = []
        told = 0
        for place, index in enumerate(encoding.ids):
            first, last = encoding.offsets[place]
            if appended[place]:
                first = last = 0 if place < front else len(prompt)
            elif index not in self._meant:
                continue
            ids += [*self._text(prompt[told:first], typed), index]
            told = last
        return ids + self._text(prompt[told:], typed), meant

    def plain(self, text: str) -> list[int]:
        """The text tokens of `text` alone. Raises LanguageError where it spells a special token."""
        return self._text(text, self.typed(text))

    def _text(self, piece: str, typed: Typed) -> list[int]:
        """The text tokens of a piece of a prompt, as if no token had been added."""
        for part, letter in reversed(typed.stand_ins):
            piece = piece.replace(letter, part)
        tokenizer = self._tokenizer
        with guarded("tokenizer", "fails on the question"):
            if tokenizer.normalizer is not None:
                piece = tokenizer.normalizer.normalize_str(piece)
            words = [piece] if piece else []
            if tokenizer.pre_tokenizer is not None:
                words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(piece)]
            ids = [token.id for word in words for token in tokenizer.model.tokenize(word)]
        for index in self._meant.intersection(ids):  # the vocabulary holds its letters as a word
            raise _forged(tokenizer.id_to_token(index))
        return ids


def _forged(token: str) -> LanguageError:
    return LanguageError("question", f"contains {token}", "plain text")


class Prompt:
    """The prompt of the checkpoint called `name`, made of its `files`, by name.

    before: int64, the text tokens in front of the video.

    Raises LanguageError when the tokenizer or the template is missing, damaged or not this
    model's, or when the language extra is not installed.
    """

    def __init__(self, files: Mapping[str, bytes], spec: LanguageSpec, name: object) -> None:
        self._name = str(name)
        self._spec = spec
        opened = open_tokenizer(files, self._name)
        if opened.base >= spec.vocabulary:
            raise LanguageError(
                f"{self._name}/{TOKENIZER}",
                f"ids up to {opened.base}",
                f"below {spec.vocabulary}, the model's vocabulary",
                "it belongs to another model: take this one's, and export again",
            )
        self._tokenizer = opened.tokenizer
        self._tokens = PromptTokens(opened, (spec.video_token_id, *spec.stop_token_ids))
        self._template = find_template(files, self._name)
        self._named = opened.named
        self._process = TemplateProcess()
        self.before, first, self._meant = self._split(SAMPLES[0])
        if np.array_equal(first, self.after(SAMPLES[1])):
            raise LanguageError(self._name, "its chat template leaves the question out", fix=OTHER)

    def after(self, question: str, begin: str = "") -> NDArray[np.int64]:
        """The text tokens that follow the video: the question, and the start of its answer, which
        goes on with `begin`.

        Tokens with a meaning of their own that a question spells are text in it. Raises
        LanguageError for an empty or endless question, one that spells a special token, one that
        the template cannot render, and a `begin` that spells a token with a meaning.
        """
        if not question.strip():
            raise LanguageError("question", "empty", "some text")
        if len(question) > LONGEST_QUESTION:
            most = f"at most {LONGEST_QUESTION:,}"
            raise LanguageError("question", f"{len(question):,} characters", most, "shorten it")
        if any("\ud800" <= letter <= "\udfff" for letter in question):
            fix = "set LANG and the terminal to UTF-8"
            raise LanguageError("question", "bytes that are no letters", "text in UTF-8", fix)
        before, after, meant = self._split(question, begin)
        if not np.array_equal(before, self.before):
            got = "its chat template puts the question before the video"
            raise LanguageError(self._name, got, "after it", OTHER)
        if meant != self._meant:
            raise LanguageError("question", "changes the tokens around it", "plain text")
        return after

    def plain(self, text: str) -> NDArray[np.int64]:
        """The text tokens of `text` alone, int64; raises LanguageError where it spells a special
        token."""
        return np.array(self._tokens.plain(text), np.int64)

    def text_stream(self) -> TextStream:
        """A decoder of one answer's tokens as they come."""
        return TextStream(self._tokenizer)

    def _split(
        self, question: str, begin: str = ""
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
        """The text tokens before and after the video, and those that have a meaning."""
        typed = self._tokens.typed(question)
        encoded, meant = self._tokens.encode(self._rendered(typed.text) + begin, typed)
        ids = np.array(encoded, np.int64)
        videos = np.flatnonzero(ids == self._spec.video_token_id)
        if len(videos) != 1:
            token = self._tokenizer.id_to_token(self._spec.video_token_id)
            raise LanguageError(
                self._name,
                f"its chat template puts {len(videos)} tokens {token!r} into a prompt",
                f"one, id {self._spec.video_token_id} by config.json",
                OTHER,
            )
        if ids.max() >= self._spec.vocabulary:
            token = self._tokenizer.id_to_token(int(ids.max()))
            raise LanguageError(
                self._name,
                f"a prompt holds the token {token!r}, id {ids.max()}",
                f"below {self._spec.vocabulary}, the model's vocabulary",
                OTHER,
            )
        place = int(videos[0])
        return ids[:place], ids[place + 1 :], meant

    def _rendered(self, question: str) -> str:
        """The prompt of `question` as text."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        try:
            return self._process.render(self._template, self._variables(content))
        except LanguageError as error:
            if not (self._process.answers and self._is_for_text_alone()):
                raise
            got = f"is for text alone, a message with a video fails ({error.got})"
            fix = "take the chat template of the model's processor, and export again"
            raise LanguageError("chat template", got, fix=fix) from error

    def _is_for_text_alone(self) -> bool:
        """Whether the template renders a message that is a text."""
        try:
            return SAMPLES[0] in self._process.render(self._template, self._variables(SAMPLES[0]))
        except LanguageError:
            return False

    def _variables(self, content: object) -> dict[str, object]:
        """What a transformers processor hands to a template."""
        return {
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **self._named,
        }


class TextStream:
    """Turns tokens into text piece by piece; bytes of a character wait for the rest of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        with guarded("tokenizer", "cannot decode"):
            decoders = import_module("tokenizers.decoders")
            self._stream = decoders.DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._told = ""

    def step(self, token: int) -> str:
        """The text that `token` completes. Raises LanguageError when the tokenizer fails."""
        self._ids.append(token)
        with guarded("tokenizer", f"cannot decode token {token}"):
            piece: str = self._stream.step(self._tokenizer, token) or ""
        self._told += piece
        return piece

    def finish(self) -> str:
        """The text that is left when no token follows; raises as `step` does."""
        with guarded("tokenizer", "cannot decode the answer"):
            whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole[len(self._told) :]
