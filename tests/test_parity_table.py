"""What `stc-parity` prints is whole on any stdout, and its latency is of frames enough."""

from __future__ import annotations

import io
import json
import math
import sys
from itertools import count
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from stc.runtime.bench.bench import ENOUGH, FEW, measure_latency
from stc.runtime.output import document_output
from stc.runtime.parity.language import kl
from stc.runtime.parity.report import ParityReport, parity_console, print_parity
from stc.runtime.stream.session import StreamSession
from stc.settings import Settings
from stc.shell import command
from tests.vision_cases import made_up, moving_frames, oracle_tower

LATENCY: dict[str, Any] = {
    f"{prefix}{kind}_{name}": 1.5
    for prefix in ("", "torch_")
    for kind in ("reference", "reuse")
    for name in ("ms_p50", "ms_p95")
}
LATENCY |= {"speedup_reference": 2.0, "speedup_reuse": None}
LATENCY |= {"reference_frames": 10, "reuse_frames": 31}


def stdout(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.BytesIO:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    return written


def table() -> int:
    report = ParityReport("fp32")
    ones = np.ones((2, 3), np.float32)
    report.graph("prune_dual_anchor_of_a_long_name", "kept_indices_of_a_long_name", ones, ones)
    print_parity(
        parity_console(),
        report,
        LATENCY,
        backend="onnxruntime-cpu",
        against="PyTorch",
        shown="4 of straße [1].mp4",
        whole="compared with [all] of it",
    )
    return 0


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_stay_whole_where_there_is_no_terminal(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    written = stdout(monkeypatch, encoding)
    assert command.run(table) == 0
    text = written.getvalue().decode(encoding)
    lines = [line.split() for line in text.splitlines()]
    row = next(line for line in lines if "prune_dual_anchor_of_a_long_name" in line)
    assert "kept_indices_of_a_long_name" in row
    assert "pass" in row
    street = {"utf-8": "straße", "ascii": "stra\\xdfe", "latin-1": "straße"}[encoding]
    assert f"frames: 4 of {street} [1].mp4" in text
    reuse = next(line for line in lines if "reuse" in line)
    assert "31" in reuse
    assert "the bundle and PyTorch are equal" in text


def test_names_are_folded_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("COLUMNS", "60"), ("TTY_COMPATIBLE", "1"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = stdout(monkeypatch, "utf-8")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command.run(table) == 0
    text = Text.from_ansi(written.getvalue().decode()).plain
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60


@pytest.mark.parametrize(
    ("interval", "frame_s", "references", "reuses"),
    [
        (2, 0.0, ENOUGH, ENOUGH),  # small
        (2, 10.0, FEW + 1, FEW),  # full size
        (4, 20.0, FEW, 2 * FEW),  # a minute has long passed when there are enough references
        (8, 90.0, 1, 2),  # too slow for more than one of each
        (1, 0.0, ENOUGH, 0),  # no reuse frames are to come
    ],
)
def test_frames_enough_of_each_kind_are_measured_in_bounded_time(
    interval: int, frame_s: float, references: int, reuses: int
) -> None:
    settings = Settings(reference_interval=interval, budget=2)
    session = StreamSession(oracle_tower(made_up(image_size=20)), settings)
    ticks: list[int] = []
    clock = (frame_s * frame for frame in count())
    bench = measure_latency(session, moving_frames(3), None, ticks.append, clock.__next__)
    assert tuple(map(len, bench.tower_ms.values())) == (references, reuses)
    # The first interval does not count.
    assert session.frame_index == interval + references + reuses
    assert ticks == sorted(ticks)


def test_figures_that_are_no_numbers_are_null_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    report = ParityReport("fp32")
    report.chain("dense", "tokens", np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))
    report.figure("head", "KL", math.nan, 1.0)
    report.figure("head", "logits", math.inf, 1.0)
    report.told("four-bit decoder", "logits", -math.inf)
    with document_output("-") as write:
        write(report.to_json())
    document = json.loads(capsys.readouterr().out)
    assert not document["passed"]
    assert [row["passed"] for row in document["rows"]] == [False, False, False, True]
    assert {row["max_abs"] for row in document["rows"]} == {None}
    assert document["rows"][0] == {
        "where": "dense",
        "tensor": "tokens (2, 4)",
        "max_abs": None,
        "relative_l2": None,
        "min_cosine": 0.0,
        "limit": 1e-3,
        "passed": False,
    }


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_do_not_pass(broken: float) -> None:
    logits = np.arange(4, dtype=np.float32)
    sick = np.where(logits == 1, np.float32(broken), logits)
    report = ParityReport("fp32")
    report.figure("head", "KL", kl(logits, sick), 1e9)
    assert not report.passed
    assert kl(logits, logits) == 0.0
