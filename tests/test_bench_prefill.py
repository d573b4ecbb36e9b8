"""`stc-bench --prefill`: the language side's latency."""

from __future__ import annotations

import json

import pytest

from stc.runtime.commands import bench as bench_command
from tests.kept_tokens import POOLED
from tests.language_cases import language_case
from tests.test_run_questions import VIDEO


def test_prefill_is_measured_at_keep_all_and_at_the_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = language_case()
    flags = ["--prefill", "--frames", "3", "--budget", "1", "--context", "60"]
    code = bench_command.main(
        [str(case.bundle.root), *flags, "--against", "torch", "--checkpoint", str(case.checkpoint)]
    )
    assert code == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in (
        "prefill_keep_all_ms_p50",
        "prefill_preset_ms_p50",
        "decode_tokens_per_s",
        "ttft_ms_p50",
        "torch_decode_ms_p50",
    ):
        assert figures[name] > 0
    assert figures["prefill_cut"] == pytest.approx(
        1 - figures["prefill_preset_ms_p50"] / figures["prefill_keep_all_ms_p50"]
    )
    assert (figures["tokens_keep_all"], figures["tokens_preset"]) == (POOLED, 1)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--context", "3"], "--context: got 3, which requires --prefill"),
        (["--prefill", "--context", "390"], "at most 380"),
        (["--prefill", "--video", VIDEO], "--video: cannot be combined with --prefill"),
    ],
)
def test_prefill_mistakes_are_one_line(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_command.main([str(language_case().bundle.root), *flags]) == 2
    assert told in capsys.readouterr().err
