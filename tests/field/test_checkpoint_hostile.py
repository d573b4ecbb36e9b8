"""Checkpoints with impossible values, and files that are not what their names say: one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stc.errors import CheckpointError
from stc.export import command
from stc.export.checkpoint.checkpoint import open_checkpoint
from tests.field.checkpoint_cases import refusal, set_values, write_tiny

CONFIG = "config.json"
JSON_FILES = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
COMPANIONS = (
    *JSON_FILES,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint to change."""
    return write_tiny(tmp_path / "tiny")


# Values.

COUNTS = [
    f"{part}.{name}"
    for part, names in (
        ("text_config", ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")),
        ("text_config", ("hidden_size", "intermediate_size", "vocab_size", "head_dim")),
        ("text_config", ("max_position_embeddings",)),
        ("vision_config", ("num_hidden_layers", "num_attention_heads", "hidden_size")),
        ("vision_config", ("intermediate_size", "image_size", "patch_size", "num_channels")),
    )
    for name in names
]


@pytest.mark.parametrize("name", COUNTS)
def test_a_count_that_is_none_is_named(name: str, directory: Path) -> None:
    """Zero heads, a billion layers, 10^30 positions: refused before anything is computed."""
    values: tuple[object, ...] = (0, -1, True, 2.5, "2", [2], {}, 10**9, 10**30)
    for value in values:
        set_values(directory / CONFIG, {name: value})
        line = refusal(directory)
        assert f"{CONFIG}: {name} is" in line


@pytest.mark.parametrize(
    "name",
    [
        "vision_config.layer_norm_eps",
        "text_config.rms_norm_eps",
        "text_config.rope_theta",
        "text_config.rope_parameters.rope_theta",
        "text_config.rope_scaling.rope_theta",
    ],
)
def test_a_measure_that_is_none_is_named(name: str, directory: Path) -> None:
    """NaN, infinity, text or a number beyond any float."""
    for value in (0, -1e-6, True, "1e-6", float("nan"), float("inf"), 10**400):
        set_values(directory / CONFIG, {name: value})
        line = refusal(directory)
        assert f"{CONFIG}: {name} is" in line


CONTENT: dict[str, bytes] = {
    "nested without end": b"[" * 100_000 + b"]" * 100_000,
    "objects nested without end": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested in a field": b'{"model_type": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key twice": b'{"model_type": "llava_onevision", "model_type": "llava_onevision"}',
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "empty": b"",
    "UTF-16": json.dumps({"a": 1}).encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"a": "\xe9"}',
    "a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "cut": b'{"a": ',
    "NUL": b"\0" * 100,
}


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("name", [CONFIG, "generation_config.json", "preprocessor_config.json"])
def test_json_that_is_none_is_refused_by_its_file(name: str, content: str, directory: Path) -> None:
    """Whatever lies in a settings file is read as transformers reads it, or told in one line."""
    (directory / name).write_bytes(CONTENT[content])
    assert name in refusal(directory)


def test_settings_nested_as_deep_as_json_goes_are_one_line(directory: Path) -> None:
    """Just below what the parser refuses, copies and checks must not recurse into a traceback."""
    for depth in (100, 300, 900):
        nested: Any = []
        for _ in range(depth):
            nested = [nested]
        for name in ("image_grid_pinpoints", "text_config.rope_parameters.factor", "anything"):
            write_tiny(directory)
            set_values(directory / CONFIG, {name: nested})
            try:
                open_checkpoint(str(directory)).language()
            except CheckpointError as error:
                assert CONFIG in str(error)


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.integers(-3, 50),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["qwen2", "siglip_vision_model", "gelu", "silu", "full", "default", "auto"]),
    st.lists(st.integers(-2, 5), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "height"]), st.integers()),
)


def _places(root: object, prefix: str = "") -> Iterator[str]:
    if isinstance(root, dict):
        for key, value in root.items():
            yield prefix + key
            yield from _places(value, f"{prefix}{key}.")


def _fields() -> list[tuple[str, str]]:
    with TemporaryDirectory() as folder:
        directory = write_tiny(Path(folder))
        fields = [
            (file, place)
            for file in JSON_FILES
            if (directory / file).exists()
            for place in _places(json.loads((directory / file).read_text()))
        ]
    more = ("num_labels", "id2label", "per_layer_config", "torch_dtype", "eos_token_id")
    return fields + [
        (CONFIG, f"{part}{name}")
        for part in ("", "text_config.", "vision_config.")
        for name in more
    ]


FIELDS = _fields()


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(FIELDS), NASTY), min_size=1, max_size=3))
def test_no_value_of_any_setting_is_more_than_one_line(
    changes: list[tuple[tuple[str, str], object]],
) -> None:
    """Any value in any place: the checkpoint opens, or is refused by a CheckpointError."""
    with TemporaryDirectory() as folder:
        directory = write_tiny(Path(folder))
        for (file, place), value in changes:
            try:
                set_values(directory / file, {place: value})
            except (AttributeError, TypeError):
                continue  # an earlier change left no object there
        try:
            open_checkpoint(str(directory)).language()
        except CheckpointError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000


# Files.


def _directory(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.symlink_to("gone")


def _looping(path: Path) -> None:
    path.symlink_to(path.name)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _binary(path: Path) -> None:
    path.write_bytes(b"\x7fELF\0\xff")


def _secret(path: Path) -> None:
    secret = path.parent.parent / "id_rsa"
    secret.write_text("-----BEGIN PRIVATE KEY-----")
    path.symlink_to(secret)


def _secret_json(path: Path) -> None:
    secret = path.parent.parent / "credentials.json"
    secret.write_text('{"token": "abc"}')
    path.symlink_to(secret)


@pytest.mark.parametrize(
    "harm",
    [_directory, _pipe, _dangling, _looping, _huge, _binary, _secret, _secret_json],
)
def test_a_companion_that_is_not_what_its_name_says_is_refused(
    harm: Callable[[Path], None], directory: Path
) -> None:
    """Dangling and looping links, links to secrets, pipes, directories, a file of a terabyte."""
    for name in COMPANIONS:
        path = directory / name
        path.unlink(missing_ok=True)
        harm(path)
        assert name in refusal(directory)
        path.rmdir() if harm is _directory else path.unlink()
        write_tiny(directory)


def test_links_to_the_right_files_are_followed(directory: Path) -> None:
    """A hub's store names files by their content; a fine-tune links its base's tokenizer."""
    store = directory.parent / "models--org--name"
    snapshot = store / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (store / "blobs").mkdir()
    for count, file in enumerate(sorted(directory.iterdir())):
        blob = store / "blobs" / f"{count:040x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    base = directory.parent / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to(base / "tokenizer.json")
    (snapshot / "chat_template.jinja").write_text("{{ messages }}")
    found = open_checkpoint(str(snapshot)).companions()
    names = {file.name for file in directory.glob("*.json")}
    assert found.keys() == names | {"tokenizer.json", "chat_template.jinja"}
    assert found[CONFIG] == (directory / CONFIG).read_bytes()


def test_companions_are_those_that_were_checked(directory: Path) -> None:
    """A file that changes after it was read and checked does not reach the bundle."""
    (directory / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(str(directory))
    for name in ("tokenizer.json", CONFIG):
        (directory / name).write_text("something else")
    assert checkpoint.companions()["tokenizer.json"] == b"{}"
    assert checkpoint.language().spec.width == 20


@pytest.mark.parametrize("harm", [_dangling, _looping])
def test_export_stops_at_a_tokenizer_that_leads_nowhere(
    harm: Callable[[Path], None], directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to succeed, without a tokenizer in the bundle."""
    harm(directory / "tokenizer.json")
    output = directory.parent / "bundle"
    flags = ["--model", "llava-ov", "--checkpoint", str(directory), "--output", str(output)]
    assert command.main(flags) == 2
    assert "tokenizer.json" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-of-this-name/model", "\0"])
def test_a_path_that_cannot_be_looked_up_is_one_line(name: str) -> None:
    """Longer than the system allows, or the home of nobody."""
    with pytest.raises(CheckpointError):
        open_checkpoint(name)
