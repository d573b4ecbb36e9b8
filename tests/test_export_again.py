"""Whoever must replace a bundle is told the command that makes it anew, as it was made."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from stc.bundles.bundle import export_again
from stc.manifest import Provenance
from stc.runtime.commands import run as run_command
from stc.settings import PRESETS, Settings
from tests.test_bundle import edit, refusal, use
from tests.tiny_bundle import provenance, write_bundle

SCHEMA_1 = Path(__file__).parent / "data" / "manifest-of-schema-1.json"
"""As it was written when graphs of variants stood in fields of their own."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize(
    ("made", "words"),
    [
        (provenance(), "--model demo --precision fp32"),
        (
            provenance("llava-ov", "org/model", "checkpoint"),
            "--model llava-ov --checkpoint org/model --precision fp32",
        ),
        (
            provenance("llava-ov", "llava-ov-7b random weights, seed 0", "random"),
            "--model llava-ov --random-weights 7b --precision fp32",
        ),
    ],
)
def test_a_bundle_of_schema_1_is_refused_with_the_command_that_makes_it_anew(
    bundle: Path, group: int | None, made: Provenance, words: str
) -> None:
    """Of its making and its four-bit graphs, though nothing else of it can be read any more."""
    document = json.loads(SCHEMA_1.read_text())
    document |= {"provenance": made.model_dump(mode="json"), "int4_group": group}
    if group is not None:
        document["int4_graphs"] = document["fused_graphs"]
    (bundle / "manifest.json").write_text(json.dumps(document))
    words += (f" --int4 {group}" if group else "") + " --preset off"
    assert run_command.main([str(bundle), "--video", "any.mp4"]) == 2
    line = refusal(bundle)
    assert "has schema version 1, expected 2 by stc " in line
    assert line.endswith(f"; export again with: stc-export {words} --output {bundle} --force")
    for file in (bundle / "graphs").iterdir():
        if file.stem not in document["graphs"]:
            file.unlink()  # which bundles had not then
    (bundle / "config.json").unlink()
    write_bundle(bundle, force=True)  # as that command does
    use(bundle)


@pytest.mark.parametrize(
    ("made", "command"),
    [
        (provenance(), "stc-export --model demo --precision fp32 --vision-only"),
        (
            provenance("llava-ov", "org/name", "checkpoint"),
            "stc-export --model llava-ov --checkpoint org/name --precision fp32 --vision-only",
        ),
        (
            provenance("llava-ov", "llava-ov-0.5b random-weights seed 0", "random"),
            "stc-export --model llava-ov --random-weights 0.5b --precision fp32 --vision-only",
        ),
    ],
)
def test_fix_repeats_the_export_that_made_the_bundle(
    tmp_path: Path, made: Provenance, command: str
) -> None:
    path = write_bundle(tmp_path / "with space", made=made)
    (path / "config.json").unlink()
    ends = f"{command} --preset off --output '{path}' --force"
    assert refusal(path).endswith(f"export again with: {ends}")


SETTINGS = [
    (Settings(budget=2), []),  # the default's for 9 tokens
    (PRESETS["cacher"], ["--preset", "cacher"]),
    (Settings(budget=2, pruner="gaussian"), ["--preset", "released"]),
    (Settings(budget=2, reference_interval=4), ["--reference-interval", "4"]),
    (Settings(budget=5), ["--budget", "5"]),
    (Settings(budget=0, reference_interval=3), ["--preset", "cacher", "--reference-interval", "3"]),
]


@pytest.mark.parametrize(("made_with", "words"), SETTINGS)
@pytest.mark.parametrize("schema", [1, 2])
def test_the_settings_it_was_exported_with_are_repeated(
    schema: int, made_with: Settings, words: list[str], bundle: Path
) -> None:
    if schema == 1:
        (bundle / "manifest.json").write_text(SCHEMA_1.read_text())
    edit(bundle, lambda document: document.update(settings=vars(made_with)))
    if schema == 2:
        (bundle / "config.json").unlink()
    told = shlex.split(refusal(bundle).partition("export again with: ")[2])
    before = ["--vision-only"] if schema == 2 else ["--precision", "fp32"]
    start = told.index(before[-1]) + 1
    assert told[start:] == [*words, "--output", str(bundle), "--force"]


def test_settings_of_an_unknown_model_are_repeated_where_they_keep_all() -> None:
    """Any other number of tokens kept may be a preset's, or too many."""
    document: dict[str, Any] = {"settings": vars(PRESETS["cacher"]), "vision": {"grid": 3}}
    assert " --preset cacher " in export_again(Path("b"), document)
    document["settings"] = vars(PRESETS["released"])
    assert "--model MODEL --output b" in export_again(Path("b"), document)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None},
        {"settings": {**vars(PRESETS["cacher"]), "budget": 10}},  # of 9 tokens
        {"settings": {**vars(PRESETS["cacher"]), "selection": "any"}},
    ],
)
def test_settings_that_no_export_takes_are_not_repeated(change: dict[str, Any]) -> None:
    document = {"vision": {"image_size": 20, "patch_size": 4}, "settings": vars(PRESETS["cacher"])}
    told = "export again with: stc-export --model MODEL --preset cacher --output b --force"
    assert export_again(Path("b"), document) == told
    assert export_again(Path("b"), document | change) == told.replace(" --preset cacher", "")
