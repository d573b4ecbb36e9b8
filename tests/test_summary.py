"""The summary as people read it, and the document of a run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stc.errors import SettingsError
from stc.runtime.figures.metrics import StreamMetrics, StreamSummary, compare_with_dense
from stc.runtime.output import document_output
from stc.runtime.show.live_table import print_summary
from stc.runtime.stream.run import run_document
from stc.settings import PRESETS, Settings
from stc.shell.command import Console
from tests.frame_reports import POOLED, TOKENS, frame_report


def _summary() -> StreamSummary:
    metrics = StreamMetrics(TOKENS, POOLED)
    metrics.add(frame_report(0, "reference", stage_ms=(1.0, 40.0, 2.0, 0.5)))
    for index in (1, 2, 3):
        metrics.add(frame_report(index))
    return replace(metrics.summary(), wall_s=2.0, dropped_frames=7, oldest_frame_ms=12.4)


def _printed(summary: StreamSummary, *, dense: bool, encoding: str = "utf-8") -> str:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding=encoding)
    console = Console(file=file, width=80)
    print_summary(console, summary, compare_with_dense(summary) if dense else None)
    file.flush()
    return written.getvalue().decode(encoding)


def test_the_summary_shows_both_kinds_and_the_saving() -> None:
    text = _printed(_summary(), dense=True)
    lines = [line.split() for line in text.splitlines()]
    assert ["vision", "40.0", "/", "40.0", "10.0", "/", "10.0"] in lines
    assert ["tokens", "recomputed", "729", "of", "729", "182", "of", "729"] in lines
    assert ["vision", "ms", "40.0", "17.5", "56.2%"] in lines
    assert ["tokens", "to", "prefill", "196.0", "58.0", "70.4%"] in lines
    assert "2.0 per second elapsed" in text
    assert "7 dropped" in text
    assert "frames at most 12 ms old" in text
    assert "█▃▃▃" in text


def test_the_comparison_shows_only_when_given() -> None:
    assert "dense" not in _printed(_summary(), dense=False)


def test_the_summary_prints_where_only_ascii_can() -> None:
    assert "vision" in _printed(_summary(), dense=True, encoding="ascii")


def test_the_summary_of_no_frame_prints() -> None:
    text = _printed(StreamMetrics(TOKENS, POOLED).summary(), dense=True)
    assert text.startswith("0 frames")
    assert " old" not in text


def test_the_document_holds_what_it_takes_to_repeat_the_run(tmp_path: Path) -> None:
    summary = _summary()
    settings = PRESETS["cacher"]
    path = tmp_path / "report.json"
    document = run_document(
        summary,
        settings=settings,
        bundle="demo",
        video="street.mp4",
        backend="onnxruntime-cpu",
        weights="int4",
        comparison=compare_with_dense(summary),
    )
    with document_output(str(path)) as write:
        write(document)
    read = json.loads(path.read_text())
    assert read == document
    assert Settings(**read["settings"]) == settings
    made = (read["bundle"], read["video"], read["backend"], read["weights"])
    assert made == ("demo", "street.mp4", "onnxruntime-cpu", "int4")
    assert read["summary"]["frames"] == 4
    assert read["against_dense"]["vision_saving"] == 0.5625
    assert {"platform", "processor", "cores", "python", "versions"} <= read["machine"].keys()
    assert {"stc", "numpy"} <= read["machine"]["versions"].keys()
    assert list(tmp_path.iterdir()) == [path]


def test_a_document_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "none" / "report.json"
    with (
        pytest.raises(SettingsError, match=r"No such file.*choose another path"),
        document_output(str(path)),
    ):
        raise AssertionError("the body was run")


def test_a_body_that_fails_leaves_the_old_document(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(OSError, match="of the body"), document_output(str(path)) as write:
        write({"frames": 1})
        raise OSError("of the body")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["report.html", "scenes", "scenes/mine.json"])
def test_what_a_run_writes_itself_is_refused_before_it_runs(
    name: str, there: bool, tmp_path: Path
) -> None:
    made = tmp_path / "new"
    if there:
        made.mkdir()
    own = name.split("/")[0]
    with (
        pytest.raises(SettingsError, match=f"{own} is what the run itself writes in .*; choose an"),
        document_output(str(made / name), made, ("scenes", "report.html")),
    ):
        pytest.fail("ran")


@pytest.mark.parametrize("name", ["n" * 256, f"{'n' * 256}/o.json"])
def test_a_name_that_is_too_long_in_a_folder_to_come_is_refused_before_the_run(
    name: str, tmp_path: Path
) -> None:
    made = tmp_path / "new"
    with (
        pytest.raises(SettingsError, match=r"cannot be written \(File name too long\)"),
        document_output(str(made / name), made),
    ):
        pytest.fail("ran")
    assert not list(tmp_path.iterdir())
    with document_output(str(made / "deeper" / "o.json"), made) as write:
        assert not list(tmp_path.iterdir())
        write({"a": 1})
    assert (made / "deeper" / "o.json").read_text() == '{\n  "a": 1\n}\n'
