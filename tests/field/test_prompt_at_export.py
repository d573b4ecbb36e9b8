"""What a question will need on the device is tried when a checkpoint is exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.errors import ExportError
from stc.export import bundle_export, command
from stc.export.demo.tokenizer import CHAT_TEMPLATE, demo_tokenizer
from tests.language_cases import language_model
from tests.tiny_checkpoint import write_checkpoint

TEMPLATE = "chat_template.jinja"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all that questions need."""
    directory = tmp_path_factory.mktemp("whole") / "checkpoint"
    write_checkpoint(directory, language_model())
    for name, content in demo_tokenizer().files.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def checkpoint(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> str:
    """What an export says that has come to writing graphs."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("graphs", "begun")

    monkeypatch.setattr(bundle_export, "BundleWriter", refuse)
    return "error: graphs: begun\n"


def _slow_tokenizer(checkpoint: Path) -> None:
    model = json.loads((checkpoint / "tokenizer.json").read_bytes())["model"]
    (checkpoint / "vocab.json").write_text(json.dumps(model["vocab"]))
    (checkpoint / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])))
    (checkpoint / "tokenizer.json").unlink()


def _other_tokenizer(checkpoint: Path) -> None:
    held = json.loads((checkpoint / "tokenizer.json").read_bytes())
    held["model"]["vocab"]["another"] = 150_000
    (checkpoint / "tokenizer.json").write_text(json.dumps(held))


def _without(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def _template(text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    def spoil(checkpoint: Path) -> None:
        (checkpoint / TEMPLATE).write_bytes(text.encode(encoding))

    return spoil


QUESTION = "{{ messages[0].content[1].text }}"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without("tokenizer.json"), "no tokenizer.json, so no questions; make it with transf"),
        (
            _slow_tokenizer,
            "so no questions (only vocab.json, merges.txt); make it with",
        ),
        (_without(TEMPLATE), "no chat template, expected chat_template.jinja, or one in"),
        (_template("{{ 1/0 }}"), "cannot be rendered (ZeroDivisionError: division by zero)"),
        (_template("{{ '' + messages[0].content }}"), "chat template: is for text alone"),
        (_template(QUESTION + "<video>"), "puts the question before the video"),
        (_template("<video>"), "leaves the question out"),
        (_template("<video><video>" + QUESTION), "puts 2 tokens '<video>' into a prompt"),
        (_template(CHAT_TEMPLATE, "utf-16"), "chat_template.jinja: not UTF-8"),
        (_other_tokenizer, "tokenizer.json: ids up to 150000, expected below"),
    ],
)
def test_a_checkpoint_that_cannot_be_asked_is_told_at_export(
    spoil: Callable[[Path], None],
    told: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fine-tunes come without tokenizer.json, without or with another template: said where it can
    be put right, before any graph is written, with what to do without it."""
    spoil(checkpoint)
    output = tmp_path / "bundle"
    flags = ["--model", "llava-ov", "--checkpoint", str(checkpoint), "--output", str(output)]
    assert command.main(flags) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert told in line
    if "save it as UTF-8" not in line:  # that fix is one for every export
        assert line.endswith("or export without answers: --vision-only\n")
    assert list(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.filterwarnings("ignore:Deprecated in 0.9.0")  # tokenizers 0.22 by transformers 5.6
def test_what_is_told_of_a_slow_tokenizer_helps(checkpoint: Path, begun: str, capsys: Any) -> None:
    """The command that the error gives makes the file that was missing."""
    from transformers import AutoTokenizer

    _slow_tokenizer(checkpoint)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(checkpoint)
    assert command.main(["--model", "llava-ov", "--checkpoint", str(checkpoint)]) == 2
    assert capsys.readouterr().err == begun


def test_without_answers_no_tokenizer_is_needed(checkpoint: Path, begun: str, capsys: Any) -> None:
    """A checkpoint without its tokenizer is exported with --vision-only."""
    (checkpoint / "tokenizer.json").unlink()
    flags = ["--model", "llava-ov", "--checkpoint", str(checkpoint), "--vision-only"]
    assert command.main(flags) == 2
    assert capsys.readouterr().err == begun


def test_random_weights_need_no_tokenizer(begun: str, capsys: Any) -> None:
    """Weights made up to measure speed have no tokenizer, and are exported with all graphs."""
    assert command.main(["--model", "llava-ov", "--random-weights"]) == 2
    assert capsys.readouterr().err == begun
