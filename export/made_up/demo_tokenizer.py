"""The demo model's tokenizer: Qwen2's kind, byte-level BPE, with a small vocabulary.

It is trained on the few sentences below whenever it is written, which takes milliseconds and
gives the same vocabulary every time; any other text falls back to bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from stc.export.checkpoint.model_files import to_json

TEXT_TOKENS = 1024
"""Bytes and merges; the sentences may yield fewer."""
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


def demo_tokenizer() -> DemoTokenizer:
    """The demo's tokenizer, trained on SENTENCES; equal every time."""
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
    tokenizer.train_from_iterator(SENTENCES.splitlines(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    vocabulary = tokenizer.get_vocab()
    special = {token: vocabulary[token] for token in SPECIAL_TOKENS}
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
    return DemoTokenizer(files, len(vocabulary), special)
