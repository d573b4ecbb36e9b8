"""Rendered prompts as text tokens, with what the user typed in them as text and nothing else.

Some tokens have a meaning of their own: those the tokenizer's files add to its vocabulary, the
video's among them. A template writes them; a user who types one has typed letters.
"""

from __future__ import annotations

from dataclasses import dataclass

from stc.errors import LanguageError
from stc.prompts.tokenizer_files import TokenizerFiles
from stc.shell.boundary import guarded

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


@dataclass(frozen=True)
class Encoded:
    """Text tokens of a prompt, and those of them that have a meaning of their own."""

    ids: list[int]
    meant: list[int]


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

    def encode(self, prompt: str, typed: Typed) -> Encoded:
        """The text tokens of `prompt`, which was made with the question `typed`.

        Where nothing stands for a part of it they are those of a transformers processor.
        """
        start = self._start
        bare = start is not None and prompt.startswith(start)
        with guarded("tokenizer", "fails on the prompt"):
            encoding = self._tokenizer.encode(prompt, add_special_tokens=not bare)
        meant = [index for index in encoding.ids if index in self._meant]
        if not typed.stand_ins:
            return Encoded(encoding.ids, meant)
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
        return Encoded(ids + self._text(prompt[told:], typed), meant)

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
