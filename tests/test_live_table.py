"""The live table: redrawn on a terminal, plain and short in a log."""

from __future__ import annotations

import io
import re
from contextlib import ExitStack

import pytest

from stc.runtime.show.live_table import ROWS, LiveTable
from stc.shell.command import Console
from tests.frame_reports import POOLED, TOKENS, difference_reports, frame_report, video_frames


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    """Seconds that pass by `step_s` per look."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def _terminal() -> tuple[_Terminal, Console]:
    file = _Terminal()
    return file, Console(file=file, force_terminal=True, width=100, color_system=None)


def test_a_log_has_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    with LiveTable(TOKENS, POOLED, expected=20, console=Console(file=file)) as table:
        for report in difference_reports(video_frames("street.mp4", 20)):
            table.add(report)
    text = file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_log_shows_ever_fewer_lines_and_the_table_once() -> None:
    file = io.StringIO()
    with LiveTable(TOKENS, POOLED, console=Console(file=file)) as table:
        for index in range(1000):
            table.add(frame_report(index, "reuse" if index % 4 else "reference"))
        lines = file.getvalue().splitlines()
        assert [line.split()[1] for line in lines] == [str(2**power - 1) for power in range(10)]
        assert lines[-1] == "frame 511  102.2 s  reuse  recomputed 182/729  kept 58/196  13.6 ms"
    rows = re.findall(r"^ *(\d+) .* (reference|reuse) ", file.getvalue(), re.MULTILINE)
    assert [int(row) for row, _ in rows] == list(range(1000 - ROWS, 1000))


def test_a_row_says_what_the_report_says() -> None:
    file = io.StringIO()
    with LiveTable(TOKENS, POOLED, console=Console(file=file)) as table:
        table.add(frame_report(7, stage_ms=(1.5, 20.25, 3.0, 0.5), time_s=61.44))
    row = file.getvalue().splitlines()[-1].split()
    assert row == ["7", "61.4", "reuse", "182/729", "58/196", "1.5", "20.2", "3.0", "0.5", "25.4"]


def test_a_log_without_frames_stays_empty() -> None:
    file = io.StringIO()
    with LiveTable(TOKENS, POOLED, console=Console(file=file)):
        pass
    assert file.getvalue() == ""


def test_a_terminal_is_redrawn_in_place_and_keeps_the_newest_rows() -> None:
    file, console = _terminal()
    clock = _Clock(step_s=0.3)
    with LiveTable(TOKENS, POOLED, expected=20, console=console, clock=clock) as table:
        for index in range(20):
            table.add(frame_report(index))
    text = file.getvalue()
    assert "\x1b[1A" in text  # cursor up
    last = re.sub(r"\x1b\[[\d?]*\w", "", text[text.rindex("\x1b[1A") :])
    assert "20/20 frames" in last
    rows = [int(row) for row in re.findall(r"^ *(\d+) .* reuse ", last, re.MULTILINE)]
    assert rows == list(range(20 - ROWS, 20))


@pytest.mark.parametrize(("step_s", "least", "most"), [(0.3, 100, 103), (0.01, 4, 8)])
def test_a_fast_stream_is_not_drawn_frame_by_frame(step_s: float, least: int, most: int) -> None:
    file, console = _terminal()
    with LiveTable(TOKENS, POOLED, console=console, clock=_Clock(step_s)) as table:
        for index in range(100):
            table.add(frame_report(index))
    assert least <= file.getvalue().count("recomputed") <= most


def test_an_exception_leaves_a_whole_terminal() -> None:
    file, console = _terminal()
    with (
        pytest.raises(KeyboardInterrupt),
        LiveTable(TOKENS, POOLED, console=console) as table,
    ):
        table.add(frame_report(0))
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_a_terminal_is_left_alone_once_the_table_has_ended() -> None:
    file, console = _terminal()
    table = LiveTable(TOKENS, POOLED, console=console)
    with ExitStack() as outlasting:
        with table:
            table.add(frame_report(0))
            outlasting.enter_context(table.aside())
        ended = file.getvalue()
    with table.aside():
        pass
    assert file.getvalue() == ended
    assert ended.rfind("\x1b[?25h") > ended.rfind("\x1b[?25l") >= 0  # the cursor is back


def test_the_header_counts_what_befell_the_source() -> None:
    file = io.StringIO()
    clock = _Clock(step_s=1.0)
    with LiveTable(TOKENS, POOLED, expected=9, console=Console(file=file), clock=clock) as table:
        table.add(frame_report(0))
        table.add(frame_report(1))
        table.count(dropped_frames=3, broken_frames=1, reconnects=2)
    assert "2/9 frames  1.0 s  2.0 frames/s  3 dropped, 1 broken, 2 reconnects" in file.getvalue()


def test_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with LiveTable(TOKENS, POOLED) as table:
        table.add(frame_report(0))
        print("{}")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    assert "frame 0" in captured.err


def test_a_terminal_table_leaves_piped_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    file, console = _terminal()
    with LiveTable(TOKENS, POOLED, console=console) as table:
        table.add(frame_report(0))
        print("{}")
    assert capsys.readouterr().out == "{}\n"
    assert "{}" not in file.getvalue()
