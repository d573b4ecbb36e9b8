"""The demo model's tokenizer: Qwen2's kind, small; every word of the scenes is one text token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stc.export.made_up.synthetic import to_json
from stc.scenes.words import words as scene_words

MODEL = Path(__file__).with_name("model")
"""The trained model: a checkpoint as published ones are."""
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

TEXT_TOKENS = 1024
"""Bytes and merges; the sentences may yield fewer."""
OFTEN = 40
"""How often a word of the scenes is read, so that it becomes one text token."""
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
LONGEST_PROMPT = 32768
"""Text tokens."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where merges may not cross, as Qwen2 has it."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + ' ' }}
{%- if message['content'] is string -%}
{{ '\\n' + message['content'] }}
{%- else -%}
{%- for kind in ('image', 'video') -%}
{%- for part in message['content'] if part['type'] == kind -%}{{ '<' + kind + '>' }}{%- endfor -%}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ '\\n' + part['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""Renders messages as LLaVA-OneVision's template does: images, then videos, then text."""

SENTENCES = """\
You are a helpful assistant. Answer the question about the video in one short sentence.
What is in the video? What is happening now? What do you see? Describe the scene in detail.
How many people are there? How many objects are moving? Who is walking? Where are they going?
What colour is the car? What colour is the square? What shape is moving? Is anything moving?
Which way does it move? Does it move to the left, to the right, up or down? Did it stop?
When did the person enter? What happened before that? What changed since the last question?
Yes, there is one. No, there is nothing moving. Nothing has changed. I am not sure.
A person is walking along the street. Two people are walking from left to right.
A woman and a man stand beside the road, and a child is running towards them.
The camera does not move: the street, the houses, the trees and the parked cars stay still.
A red car, a blue bus, a white van, a green bicycle and a black dog pass slowly from the right.
There are three people in the upper left corner of the image and none in the lower right.
The circle moves up, the square moves down, the triangle stays in the middle of the frame.
The small object is near the top, the large object is near the bottom, in front of the wall.
red green blue yellow orange purple white black grey brown bright dark
circle square triangle rectangle line small large fast slow left right up down still moving
zero one two three four five six seven eight nine ten first second third last next
The scene cuts to another place: a room with a table, a chair, a window and an open door.
It began to rain, the light went out, and then everybody left the room one after another.
"""


@dataclass(frozen=True)
class DemoTokenizer:
    """The tokenizer's files by name, and what a model configuration needs to know of it."""

    files: dict[str, bytes]
    vocabulary: int
    ids: dict[str, int]
    """Of the special tokens."""
    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """The text tokens of `text`."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @property
    def stop(self) -> int:
        """The text token that ends an answer."""
        return self.ids["<|im_end|>"]

    def prompt_parts(self) -> tuple[list[int], list[int]]:
        """The text tokens before the video, and those between a question and its answer."""
        return self.encode("<|im_start|>user "), self.encode("<|im_end|><|im_start|>assistant\n")


def demo_tokenizer() -> DemoTokenizer:
    """The tokenizer of the model in MODEL."""
    files = {name: (MODEL / name).read_bytes() for name in FILES}
    return _described(files, Tokenizer.from_buffer(files[FILES[0]]))


def made_tokenizer() -> DemoTokenizer:
    """The same from nothing: byte-level BPE with a small vocabulary, equal every time; what is in
    neither SENTENCES nor the scenes falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    configuration = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<image>", "<video>"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": LONGEST_PROMPT,
    }
    files = {
        "tokenizer.json": to_json(json.loads(tokenizer.to_str())),
        "tokenizer_config.json": to_json(configuration),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
    }
    return _described(files, tokenizer)


def _described(files: Mapping[str, bytes], tokenizer: Tokenizer) -> DemoTokenizer:
    vocabulary = tokenizer.get_vocab()
    special = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    return DemoTokenizer(dict(files), len(vocabulary), special, tokenizer)


def _texts() -> Iterator[str]:
    """What the tokenizer is trained on: every word of the scenes' questions is one text token, at
    the start of a text and behind a space."""
    yield from SENTENCES.splitlines()
    for word in scene_words():
        yield from (word, f"a {word}") * OFTEN
