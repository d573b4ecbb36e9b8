"""Chat templates in the forms that published checkpoints have them, against transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stc.errors import LanguageError
from stc.prompts.prompt import Prompt
from tests.field.prompt_cases import (
    CHATML,
    MADE,
    VIDEO,
    change,
    expected_ids,
    ids_of,
    processor_of,
    prompt_of,
    spec,
    write_files,
    write_json,
)
from tests.field.template_shapes import SHAPES

MORE = (
    *("<s>", "</s>", "[INST]", "[/INST]", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>"),
)
"""Special tokens of those models."""
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "<|end|>", "image_token": "<image>"}

letters = st.characters(exclude_categories=["Cs"], exclude_characters="<[")
questions = st.one_of(
    st.text(letters, min_size=1, max_size=60),
    st.sampled_from(
        [
            "{{ 1/0 }}",
            "{% raw %}",
            "%s {0} \\n",
            "  two  \n\n spaces\t",
            "naïve 你好 🚲",
            "a\r\nb\0c",
        ]
    ),
).filter(lambda text: bool(text.strip()))


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The prompt of a shape and transformers' processor for it."""
    root = tmp_path_factory.mktemp("shapes")

    @cache
    def both(shape: str) -> tuple[Prompt, Any]:
        directory = write_files(
            root / str(sorted(SHAPES).index(shape)),
            SHAPES[shape],
            tokenizer_class="PreTrainedTokenizerFast",
            added_tokens_decoder={
                str(MADE.vocabulary + place): token(content) for place, content in enumerate(MORE)
            },
            **NAMED,
        )
        return prompt_of(directory), processor_of(directory)

    return both


def token(content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json lists it."""
    names = ("lstrip", "normalized", "rstrip", "single_word")
    return {"content": content, **dict.fromkeys(names, False), "special": True, **flags}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_published_shapes_are_the_tokens_transformers_makes(shape: str, shaped: Any) -> None:
    """Templates of ChatML, LLaVA-OneVision, Qwen2-VL, Llama, Mistral, Gemma, Phi and Vicuna: any
    question is, to the token, the prompt of a transformers processor."""
    prompt, processor = shaped(shape)

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(questions)
    def check(question: str) -> None:
        assert ids_of(prompt, question) == expected_ids(processor, question)

    check()


PLACES = ("config", "config as dict", "map", "map as dict", "null", "nowhere")


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    places=st.fixed_dictionaries(
        {name: st.sampled_from(PLACES) for name in ("bos_token", "eos_token", "pad_token")}
    ),
    kind=st.sampled_from(["PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", ...]),
    extra=st.sampled_from(
        [[], ["<new>"], [{"content": "<new>", "lstrip": True}], {"x_token": "<n>"}]
    ),
)
def test_special_tokens_are_found_wherever_transformers_finds_them(
    places: dict[str, str], kind: Any, extra: Any, tmp_path: Path
) -> None:
    """Fine-tunes name `eos_token` in tokenizer_config.json or special_tokens_map.json, as text or
    with flags: a template that writes it gets it, and nothing where nothing names it."""
    contents = {"bos_token": "<|im_start|>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ x_token }}"
    directory = write_files(tmp_path, template + "<video>{{ messages[0].content[1].text }}")
    held: dict[str, dict[str, Any]] = {"config": {}, "map": {}}
    for name, place in places.items():
        content = contents[name]
        flags = {"content": content, "lstrip": False, "normalized": False, "rstrip": False}
        flags["single_word"] = False
        if place == "null":
            held["config"][name] = None
        elif place.startswith("map"):
            held["map"][name] = flags if "dict" in place else content
        elif place.startswith("config"):
            as_dict = {"__type": "AddedToken", **flags, "special": True}
            held["config"][name] = as_dict if "dict" in place else content
    cleared = dict.fromkeys(contents, ...)
    listed = [{"__type": "AddedToken", **token(**one)} for one in extra if isinstance(one, dict)]
    held["config"]["additional_special_tokens"] = listed or extra
    change(
        directory / "tokenizer_config.json", **{**cleared, **held["config"]}, tokenizer_class=kind
    )
    write_json(directory / "special_tokens_map.json", held["map"])
    processor = processor_of(directory)
    prompt = prompt_of(directory)
    for question in ("What is it?", "a  b"):
        assert ids_of(prompt, question) == expected_ids(processor, question)


HOLDERS = ("chat_template.jinja", "chat_template.json", "processor_config.json")


@pytest.mark.parametrize("mask", range(1, 2 ** len(HOLDERS)))
def test_of_several_templates_the_processors_choice_is_taken(mask: int, tmp_path: Path) -> None:
    """Checkpoints saved by several versions hold several templates that differ; which one counts
    is transformers' choice. Beside them lies the text-only one of the tokenizer."""
    text_only = "{{ messages[0]['content'] + 'x' }}"
    directory = write_files(tmp_path, None, chat_template=text_only)
    for place, holder in enumerate(HOLDERS):
        if mask >> place & 1:
            template = CHATML.replace("assistant", holder)
            if holder.endswith(".jinja"):
                (directory / holder).write_text(template)
            else:
                write_json(directory / holder, {"chat_template": template})
    if mask >> 2 & 1:
        change(directory / HOLDERS[2], processor_class="LlavaOnevisionProcessor")
    question = "What is it?"
    expected = expected_ids(processor_of(directory), question)
    assert ids_of(prompt_of(directory), question) == expected


def test_named_templates_give_the_default_one(tmp_path: Path) -> None:
    """A processor_config.json with templates by name, as processors with several are saved."""
    directory = write_files(tmp_path, None)
    held = {"default": CHATML, "tool_use": "no"}
    fields = {"processor_class": "LlavaOnevisionProcessor", "chat_template": held}
    write_json(directory / "processor_config.json", fields)
    expected = expected_ids(processor_of(directory), "What is it?")
    assert ids_of(prompt_of(directory), "What is it?") == expected
    write_json(directory / "processor_config.json", {"chat_template": {"tool_use": CHATML}})
    with pytest.raises(LanguageError, match="templates named tool_use, expected one named"):
        prompt_of(directory)


@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_templates_saved_on_other_systems_are_read_alike(
    start: str, newline: str, tmp_path: Path
) -> None:
    """A template saved by a Windows editor: line ends and a mark at its start."""
    directory = write_files(tmp_path, None)
    template = start + SHAPES["chatml with a system prompt"].replace("\n", newline)
    (directory / "chat_template.jinja").write_bytes(template.encode())
    expected = expected_ids(processor_of(directory), "What is it?")
    assert ids_of(prompt_of(directory), "What is it?") == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("chat_template.jinja", CHATML.encode("utf-16"), "chat_template.jinja: not UTF-8"),
        ("chat_template.jinja", b"caf\xe9 <video>", r"not UTF-8 \(byte 3 is 0xe9\)"),
        ("chat_template.json", b'{"chat_template": "caf\xe9"}', "chat_template.json: not UTF-8"),
        ("chat_template.json", b'\xef\xbb\xbf{"chat_template": "x"}', "without a byte order mark"),
        ("chat_template.json", b'{"chat_template": ', "chat_template.json: not valid JSON"),
        ("processor_config.json", b"[" * 10**5, "processor_config.json: not valid JSON"),
        ("processor_config.json", b'{"chat_template": 7}', "chat_template is a int"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json: holds a list"),
        (
            "chat_template.json",
            b'{"chat_template": [{"name": [1], "template": "x"}]}',
            r"holds templates named \[1\]",
        ),
        ("tokenizer_config.json", b'{"added_tokens_decoder": 7}', "added tokens cannot be read"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"a": 7}}', "cannot be read"),
        ("special_tokens_map.json", b"\xff", "special_tokens_map.json: not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    """A template saved as UTF-16 or Latin-1, a cut or forged JSON file beside it."""
    directory = write_files(tmp_path)
    (directory / name).write_bytes(content)
    with pytest.raises(LanguageError, match=told) as caught:
        prompt_of(directory)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ '<|im_start|>user\n' + message['content'] + '<|im_end|>' }}",
        "{{ message['content'].strip() }}",
        "{{ message.content.split('</think>')[-1] }}",
    ],
)
def test_a_template_for_text_alone_is_told_as_such(text: str, tmp_path: Path) -> None:
    """Qwen2's template beside a merged fine-tune: transformers cannot render a video by it."""
    template = "{% for message in messages %}" + text + "{% endfor %}"
    directory = write_files(tmp_path, template)
    with pytest.raises(Exception, match="list"):
        expected_ids(processor_of(directory), "What is it?")
    with pytest.raises(LanguageError, match=r"template: is for text alone.*the model's processor"):
        prompt_of(directory)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("<video>", "leaves the question out"),
        ("{{ messages[0].content[1].text }}<video>", "puts the question before the video"),
        ("{{ messages }}", "puts 0 tokens '<video>'"),
        ("{{ messages[0].content[1].text }}" + "<video>" * 2, "puts 2 tokens '<video>'"),
        ("{{ messages[0].content[1].text | nope }}", "cannot be read .*No filter named 'nope'"),
        ("{{ raise_exception('a\x1b[31mb\nc') }}", r"refuses the question \(a\\x1b\[31mb c\)"),
        ("{% include 'other' %}", "cannot be rendered .*no loader"),
    ],
)
def test_templates_that_make_no_prompt_are_one_line(
    template: str, told: str, tmp_path: Path
) -> None:
    """Templates of other models, and cut ones: what is wrong with them, when they are opened."""
    directory = write_files(tmp_path, template)
    with pytest.raises(LanguageError, match=told) as caught:
        prompt_of(directory)
    assert str(caught.value).isprintable()


def test_the_clock_of_a_prompt_stands_still(tmp_path: Path) -> None:
    """A template that tells the time before the video: what a stream remembers of its start has
    to stay the start of every later prompt."""
    clock = "{{ strftime_now('%H:%M:%S.%f') }}<video>{{ messages[0].content[1].text }}"
    prompt = prompt_of(write_files(tmp_path, clock))
    assert prompt.after("One?").tolist() != prompt.after("Two?").tolist()


def test_ids_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    """A token added after training without room in the model, which the template writes."""
    directory = write_files(tmp_path, CHATML + "{{ eos_token }}", eos_token="<new>")
    with pytest.raises(LanguageError, match=r"token '<new>', id \d+, expected below"):
        prompt_of(directory, spec(vocabulary=MADE.vocabulary))
    change(directory / "tokenizer_config.json", eos_token="<|im_end|>", pad_token="<new>")
    prompt = prompt_of(directory, spec(vocabulary=MADE.vocabulary))
    assert VIDEO in ids_of(prompt, "A token that is never written does no harm.")


def test_a_tokenizer_that_cuts_and_pads_does_neither(tmp_path: Path) -> None:
    """tokenizer.json saved after training with `truncation` and `padding` set in it: a prompt
    that is cut would lose the question, so it is what it is without them."""
    directory = write_files(tmp_path)
    question = "How many people are walking along the street now?"
    expected = expected_ids(processor_of(directory), question)
    file = directory / "tokenizer.json"
    held = json.loads(file.read_bytes())
    held["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    held["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": MADE.ids["<|endoftext|>"],
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    write_json(file, held)
    assert ids_of(prompt_of(directory), question) == expected
