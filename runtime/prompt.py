"""Questions as text tokens, text tokens as text: the checkpoint's tokenizer and chat template.

A prompt is text tokens, the video, text tokens. Those before the video are the same for every
question: they are remembered once, when the stream starts.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import LanguageError
from stc.manifest import LanguageSpec
from stc.runtime.chat_template import Messages, read_template, template_renderer

TOKENIZER = "tokenizer.json"
SAMPLE = "What is in the video?"
"""A question to find out what every prompt starts with."""


class Prompt:
    """The prompt of a bundle's checkpoint.

    before: int64, the text tokens in front of the video.

    Raises LanguageError when the tokenizer or the template is missing, damaged or not this
    model's, or when the language extra is not installed.
    """

    def __init__(self, root: Path, spec: LanguageSpec) -> None:
        self._root = root
        self._spec = spec
        self._tokenizer = _open(root)
        self._render = template_renderer(read_template(root))
        most = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if most >= spec.vocabulary:
            raise LanguageError(
                root / TOKENIZER,
                f"ids up to {most}",
                f"below {spec.vocabulary}, the model's vocabulary",
                "it belongs to another model: export again from the checkpoint",
            )
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._special = [token.content for token in added if token.special]
        self.before = self._split(SAMPLE)[0]

    def after(self, question: str) -> NDArray[np.int64]:
        """The text tokens that follow the video: the question, and the start of its answer.

        Raises LanguageError for an empty question, or one with a token that has a meaning of its
        own in the prompt.
        """
        if not question.strip():
            raise LanguageError("question", "empty", "some text")
        if any("\ud800" <= letter <= "\udfff" for letter in question):
            mend = "set LANG and the terminal to UTF-8"
            raise LanguageError("question", "bytes that are no letters", "text in UTF-8", mend)
        for token in self._special:
            if token in question:
                raise LanguageError("question", f"contains {token}", "plain text")
        before, after = self._split(question)
        if not np.array_equal(before, self.before):
            raise LanguageError(
                self._root, "its chat template puts the question before the video", "after it"
            )
        return after

    def text_stream(self) -> TextStream:
        """A decoder of one answer's tokens as they come."""
        return TextStream(self._tokenizer)

    def _split(self, question: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        messages: Messages = [{"role": "user", "content": content}]
        encoded = self._tokenizer.encode(self._render(messages), add_special_tokens=False)
        ids = np.array(encoded.ids, np.int64)
        videos = np.flatnonzero(ids == self._spec.video_token_id)
        if len(videos) != 1:
            token = self._tokenizer.id_to_token(self._spec.video_token_id)
            raise LanguageError(
                self._root,
                f"its chat template puts {len(videos)} tokens {token!r} into a prompt",
                f"one, id {self._spec.video_token_id} by config.json",
                "tokenizer or template belong to another model: export again",
            )
        place = int(videos[0])
        return ids[:place], ids[place + 1 :]


class TextStream:
    """Turns tokens into text piece by piece; bytes of a character wait for the rest of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = import_module("tokenizers.decoders").DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._told = ""

    def step(self, token: int) -> str:
        """The text that `token` completes."""
        self._ids.append(token)
        piece: str = self._stream.step(self._tokenizer, token) or ""
        self._told += piece
        return piece

    def finish(self) -> str:
        """The text that is left when no token follows."""
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole[len(self._told) :]


def _open(root: Path) -> Any:
    """The tokenizers.Tokenizer of the files in `root`."""
    file = root / TOKENIZER
    if not file.is_file():
        raise LanguageError(
            root,
            f"no {TOKENIZER}, so no questions",
            mend="export again from a checkpoint that has one",
        )
    try:
        tokenizers = import_module("tokenizers")
        import_module("jinja2")
    except ImportError as error:
        raise LanguageError(
            "questions", f"{error.name} is not installed", mend="pip install 'stc[language]'"
        ) from error
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        first = str(error).splitlines()[0]
        raise LanguageError(file, f"cannot be read ({first})", mend="copy it again") from error
