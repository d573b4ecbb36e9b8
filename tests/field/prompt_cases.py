"""Folders of tokenizer and template files, the prompts made of them, and transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlavaOnevisionProcessor

from stc.export.demo.tokenizer import demo_tokenizer
from stc.export.made_up.synthetic import preprocessing
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt

MADE = demo_tokenizer()
VIDEO = MADE.ids["<video>"]
STOP = MADE.ids["<|im_end|>"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>{% else %}{{ '\\n' + part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The shape of LLaVA-OneVision's template."""


def spec(vocabulary: int = MADE.vocabulary + 40, video: int = VIDEO) -> LanguageSpec:
    """A decoder of the demo tokenizer's vocabulary, with room for tokens a test adds."""
    return LanguageSpec(
        width=32,
        blocks=1,
        query_heads=2,
        key_heads=2,
        head_width=16,
        mlp_width=32,
        vocabulary=vocabulary,
        max_positions=4096,
        rotary_base=10_000.0,
        rms_norm_eps=1e-6,
        activation="silu",
        tied_head=True,
        video_token_id=video,
        stop_token_ids=(STOP,),
    )


def write_files(directory: Path, template: str | None = CHATML, **changed: Any) -> Path:
    """A checkpoint's files without weights; `changed` fields of tokenizer_config.json."""
    directory.mkdir(exist_ok=True)
    for name, content in MADE.files.items():
        (directory / name).write_bytes(content)
    write_json(directory / "config.json", {"model_type": "llava_onevision"})
    processing = preprocessing(16) | {"crop_size": None}
    write_json(directory / "preprocessor_config.json", processing)
    change(directory / "tokenizer_config.json", **changed)
    (directory / "chat_template.jinja").unlink()
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory


def write_json(file: Path, value: object) -> None:
    """`file` holds `value`."""
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(file: Path, **fields: Any) -> None:
    """The object in `file` has `fields`; one that is ... is gone."""
    held = json.loads(file.read_bytes()) | fields
    write_json(file, {key: value for key, value in held.items() if value is not ...})


def prompt_of(directory: Path, its: LanguageSpec | None = None) -> Prompt:
    """The prompt of the files in `directory`."""
    files = {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file()}
    return Prompt(files, its or spec(), directory)


def ids_of(prompt: Prompt, question: str) -> list[int]:
    """The whole prompt of `question`."""
    return [*prompt.before.tolist(), VIDEO, *prompt.after(question).tolist()]


def messages(question: str) -> list[dict[str, Any]]:
    """The conversation that a prompt stands for."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]


class TextProcessor(LlavaOnevisionProcessor):  # type: ignore[misc]  # no types
    """transformers' processor without its video processor, which would need torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        """Let None stand for what is not needed to make prompts."""

    def validate_inputs(self, **inputs: Any) -> None:
        """Let a prompt name a video whose pixels are not at hand."""


def processor_of(directory: Path) -> Any:
    """transformers' processor of the files in `directory`, as AutoProcessor makes it."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    fields, _ = TextProcessor.get_processor_dict(directory)
    return TextProcessor.from_args_and_dict([None, tokenizer, None], fields)


def expected_ids(processor: Any, question: str) -> list[int]:
    """The whole prompt of `question` by transformers."""
    rendered = processor.apply_chat_template(
        messages(question), add_generation_prompt=True, tokenize=True
    )
    found: list[int] = list(rendered[0])
    return found
