"""How far a command is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import io

import pytest

from stc.engines.build.builders import BuildProgress
from stc.export import command as export_command
from stc.shell.command import Console
from stc.shell.progress import Progress


def test_lines_come_at_intervals_and_not_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("stc.shell.progress.monotonic", lambda: now)
    for every_s, terminal, expected in ((30.0, False, 3), (None, False, 0), (30.0, True, 0)):
        now, out = 0.0, io.StringIO()
        console = Console(file=out, force_terminal=terminal)
        with Progress(console=console, every_s=every_s) as shown:
            task = shown.add_task("frames run", total=1000)
            for _ in range(100):
                now += 1.0
                shown.advance(task)
        told = [line for line in out.getvalue().splitlines() if line.startswith("frames run: ")]
        assert len(told) == expected
        assert all(line.startswith("frames run: 30 of 1,000 after ") for line in told[:1])


def said(text: str) -> list[str]:
    """The lines of `text` without their times."""
    return [line.partition(" after ")[0] for line in text.splitlines()]


def test_an_export_says_how_many_graphs_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with export_command._progress(3) as tick:
        tick("embed")
    assert capsys.readouterr().err == ""  # less than half a minute
    monkeypatch.setattr(export_command, "PLAIN_S", 0.0)
    with export_command._progress(3) as tick:
        tick("embed")
        tick("update_00")
    assert said(capsys.readouterr().err) == ["graphs exported: 1 of 3", "graphs exported: 2 of 3"]


def test_a_build_says_how_many_engines_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stc.engines.build.builders.PLAIN_S", 0.0)
    out = io.StringIO()
    with BuildProgress(2, Console(file=out)) as progress:
        progress.began("embed")
        progress.built("embed")
        progress.compared("embed")
    assert said(out.getvalue()) == ["engines: 1 of 2", "compared embed: 2 of 2"]
