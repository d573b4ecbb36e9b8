"""Prompts: the checkpoint's tokenizer and template, without transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stc.errors import LanguageError
from stc.export.demo.tokenizer import CHAT_TEMPLATE
from stc.manifest import LanguageSpec
from stc.prompts.prompt import Prompt
from tests.language_cases import language_case

QUESTION = "What is moving, and where to?\nNaïve café 你好 🚲"

LLAVA_ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}"
    "{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of the published llava-onevision-qwen2-*-ov-hf checkpoints (Apache-2.0)."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tokenizer's files, to change."""
    source = language_case().checkpoint
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, tmp_path)
    return tmp_path


def prompt_of(root: Path, spec: LanguageSpec) -> Prompt:
    return Prompt({file.name: file.read_bytes() for file in root.iterdir()}, spec, root)


def spec() -> LanguageSpec:
    found = language_case().bundle.manifest.language
    assert found is not None
    return found


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAVA_ONEVISION], ids=["demo", "published"])
@pytest.mark.parametrize(
    "holder", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "named"]
)
def test_prompts_are_the_tokens_transformers_makes(root: Path, template: str, holder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root)
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}
    ]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, return_dict=False
    )
    (root / "chat_template.jinja").unlink()
    if holder == "chat_template.jinja":
        (root / holder).write_text(template)
    else:
        named = [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
        held = named if holder == "named" else template
        file = "tokenizer_config.json" if holder == "named" else holder
        (root / file).write_text(json.dumps({"chat_template": held}))
    prompt = prompt_of(root, spec())
    ids = [*prompt.before, spec().video_token_id, *prompt.after(QUESTION)]
    assert ids == expected


def test_text_comes_out_in_pieces_that_never_split_a_character(root: Path) -> None:
    prompt = prompt_of(root, spec())
    text = "a bicycle 🚲, 你好 naïve."
    tokenizer = AutoTokenizer.from_pretrained(root)
    ids = tokenizer.encode(text)
    stream = prompt.text_stream()
    pieces = [stream.step(token) for token in ids]
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces)
    assert "" in pieces
    assert stream.finish() == ""
    stream = prompt.text_stream()
    for token in ids[: pieces.index("") + 1]:
        stream.step(token)
    assert "�" in stream.finish()


def test_special_tokens_are_no_text(root: Path) -> None:
    stream = prompt_of(root, spec()).text_stream()
    assert stream.step(spec().stop_token_ids[0]) + stream.finish() == ""


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question_is_refused(root: Path, question: str) -> None:
    with pytest.raises(LanguageError, match=r"^question: empty, expected some text$"):
        prompt_of(root, spec()).after(question)


def test_a_question_that_is_no_text_is_refused(root: Path) -> None:
    """A byte that is no UTF-8 comes as this from argv."""
    with pytest.raises(LanguageError, match="no letters, expected text in UTF-8; set LANG"):
        prompt_of(root, spec()).after("caf\udce9?")


@pytest.mark.parametrize("token", ["<video>", "<|im_end|>", "<image>"])
def test_a_question_that_forges_the_prompt_is_refused(root: Path, token: str) -> None:
    with pytest.raises(LanguageError, match=r"question: contains <.*>, expected plain text"):
        prompt_of(root, spec()).after(f"Is {token} moving?")


@pytest.mark.parametrize(
    ("name", "told"),
    [("tokenizer.json", "no tokenizer.json, so no questions"), ("chat_template.jinja", "no chat")],
)
def test_missing_files_are_named(root: Path, name: str, told: str) -> None:
    (root / name).unlink()
    with pytest.raises(LanguageError, match=told):
        prompt_of(root, spec())


def test_a_damaged_tokenizer_is_one_line(root: Path) -> None:
    (root / "tokenizer.json").write_text('{"model": \n 3}')
    with pytest.raises(LanguageError, match=r"tokenizer\.json: cannot be read") as caught:
        prompt_of(root, spec())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for", "chat template: cannot be read"),
        ("{{ raise_exception('no video') }}", r"refuses the question \(no video\)"),
        ("{{ messages[0]['content'][1]['text'] }}", "puts 0 tokens '<video>' into a prompt"),
        ("<video><video>", "puts 2 tokens"),
    ],
)
def test_templates_that_do_not_fit_are_refused(root: Path, template: str, told: str) -> None:
    (root / "chat_template.jinja").write_text(template)
    with pytest.raises(LanguageError, match=told):
        prompt_of(root, spec())


def test_a_template_with_the_question_before_the_video_is_refused(root: Path) -> None:
    (root / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}<video>")
    with pytest.raises(LanguageError, match="puts the question before the video"):
        prompt_of(root, spec()).after("Another question?")


def test_a_tokenizer_of_another_model_is_refused(root: Path) -> None:
    small = spec().model_copy(update={"vocabulary": 500})
    with pytest.raises(LanguageError, match="expected below 500, the model's vocabulary"):
        prompt_of(root, small)
    other = spec().model_copy(update={"video_token_id": 7})
    with pytest.raises(LanguageError, match=r"one, id 7 by config.json"):
        prompt_of(root, other)


def test_a_begun_answer_ends_the_prompt(root: Path) -> None:
    prompt = prompt_of(root, spec())
    tokenizer = AutoTokenizer.from_pretrained(root)
    begun = prompt.after(QUESTION, "Best option: (")
    plain = prompt.after(QUESTION)
    assert tokenizer.decode(begun) == tokenizer.decode(plain) + "Best option: ("
    assert prompt.after(QUESTION, "").tolist() == plain.tolist()
    with pytest.raises(LanguageError, match="changes the tokens around it"):
        prompt.after(QUESTION, "Best<|im_end|>")


def test_plain_text_is_its_own_tokens(root: Path) -> None:
    prompt = prompt_of(root, spec())
    tokenizer = AutoTokenizer.from_pretrained(root)
    assert prompt.plain(QUESTION).tolist() == tokenizer.encode(QUESTION, add_special_tokens=False)
    assert prompt.plain("").tolist() == []
    with pytest.raises(LanguageError, match=r"question: contains <\|im_end\|>"):
        prompt.plain("a<|im_end|>")
