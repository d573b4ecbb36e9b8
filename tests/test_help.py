"""Every flag of every command says what it does, and what holds without it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import pytest

from stc.engines import command as build_command
from stc.export import command as export_command
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import doctor as doctor_command
from stc.runtime.commands import eval as eval_command
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import plan as plan_command
from stc.runtime.commands import run as run_command
from stc.settings import DEFAULT_PRESET, PRESETS, Settings
from stc.shell import command
from tests.as_user import MODULES

MAINS: dict[str, Callable[[list[str]], int]] = {
    "stc-export": export_command.main,
    "stc-build": build_command.main,
    "stc-run": run_command.main,
    "stc-parity": parity_command.main,
    "stc-bench": bench_command.main,
    "stc-eval": eval_command.main,
    "stc-plan": plan_command.main,
    "stc-doctor": doctor_command.main,
}
SAID_BY_THE_GROUP = "STC settings"


class Parsed(Exception):  # noqa: N818
    """Carries the parser of a command out of it."""


def parser_of(main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch) -> command.Parser:
    def parse(parser: command.Parser, arguments: object) -> NoReturn:
        raise Parsed(parser)

    monkeypatch.setattr(command.Parser, "parse_args", parse)
    with pytest.raises(Parsed) as caught:
        main([])
    parser = caught.value.args[0]
    assert isinstance(parser, command.Parser)
    return parser


@pytest.mark.parametrize("name", MAINS)
def test_every_flag_has_help_with_its_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = parser_of(MAINS[name], monkeypatch)
    for group in parser._action_groups:
        for action in group._group_actions:
            flag = action.option_strings[-1] if action.option_strings else action.dest
            assert action.help, flag
            takes_a_value = action.option_strings and action.nargs != 0
            if action.required or not takes_a_value or group.title == SAID_BY_THE_GROUP:
                continue
            if action.default is not None or action.type not in (None, Path) or action.choices:
                told = "default" in action.help or isinstance(action.default, list)
                assert told or flag in SILENT, flag


SILENT = {"--prefill-every"}
"""One frame per call is what nobody would look up."""


@pytest.mark.parametrize("name", ["stc-export", "stc-run", "stc-parity", "stc-bench", "stc-plan"])
def test_settings_have_a_help_of_their_own(
    name: str, run_main: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """`--help` shows the presets' names alone, `--help-settings` what they hold and every flag."""
    short, whole = (run_main(MAINS[name], flag) for flag in ("--help", "--help-settings"))
    assert (short.returncode, whole.returncode) == (0, 0)
    assert "|".join(PRESETS) in short.stdout
    assert "--help-settings" in short.stdout
    flags = [f"--{field.name.replace('_', '-')}" for field in fields(Settings)]
    told = " ".join(whole.stdout.split())
    for flag in flags:
        assert f"\n  {flag} " not in short.stdout
        assert flag in told
    for words in (
        "paper: interval 2, ratio 0.25, keeps 58 of 196 by dual-anchor",
        "off: every frame dense, keeps all",
        "those of --preset paper if nothing else was said",
    ):
        assert words in told


def test_settings_without_a_word_are_the_default_presets() -> None:
    assert Settings() == PRESETS[DEFAULT_PRESET]
    assert Settings().selection == "layerwise"


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for main in MAINS.values():
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert ended.value.code == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", MODULES)
def test_a_commands_module_is_the_command_too(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m`, where scripts are not in PATH."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, MODULES[name], raising=False)
    with pytest.raises(SystemExit) as left:
        runpy.run_module(MODULES[name], run_name="__main__")
    assert left.value.code == 0
    assert "usage: " in capsys.readouterr().out
