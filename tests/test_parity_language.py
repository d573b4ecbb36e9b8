"""The language side of `stc-parity`: graphs, logits, an answer, four bits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stc.engines.onnxruntime_backend import OnnxRuntimeEngine
from stc.manifest import Group
from stc.runtime.commands import parity as parity_command
from stc.runtime.parity.language import OTHERS
from tests.kept_tokens import MAX_POSITIONS
from tests.language_cases import language_case


def parity(
    capsys: pytest.CaptureFixture[str], *flags: str, int4: Group | None = None
) -> tuple[int, dict[str, Any]]:
    case = language_case(int4=int4)
    code = parity_command.main(
        [str(case.bundle.root), "--checkpoint", str(case.checkpoint), "--json", "-", *flags]
    )
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_parity_covers_every_language_graph_logits_and_an_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, document = parity(capsys)
    assert code == 0
    rows = {(row["where"], row["tensor"]): row for row in document["rows"]}
    for block in range(3):
        assert ("qkv_0" + str(block), "key") in rows
        assert ("attend_0" + str(block), "hidden_out") in rows
    for figure in ("logits", "KL", "top-1 gap"):
        assert rows["whole decoder", figure]["passed"]
    assert rows["greedy answer", "gap"]["max_abs"] == 0.0
    assert rows["greedy answer", OTHERS]["max_abs"] == 0
    assert rows["greedy answer", OTHERS]["limit"] == 0  # no tie that could excuse one
    assert "int4 decoder" not in {where for where, _ in rows}


def test_parity_compares_single_tokens_and_the_last_positions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = OnnxRuntimeEngine.__call__
    seen = set()

    def watched(self: OnnxRuntimeEngine, inputs: Any, *arguments: Any) -> Any:
        if self.name == "attend_01":
            positions = inputs["query_positions"].numpy()
            seen.add((len(positions), int(positions[-1])))
        return call(self, inputs, *arguments)

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", watched)
    code, _ = parity(capsys)
    assert code == 0
    assert seen >= {(1, 23), (24, 23), (1, MAX_POSITIONS - 1), (24, MAX_POSITIONS - 1)}


def test_parity_fails_when_single_tokens_at_the_last_position_are_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = OnnxRuntimeEngine.__call__

    def off(self: OnnxRuntimeEngine, inputs: Any, *arguments: Any) -> Any:
        outputs = call(self, inputs, *arguments)
        if self.name == "attend_01":
            positions = inputs["query_positions"].numpy()
            if positions.tolist() == [MAX_POSITIONS - 1]:
                outputs["hidden_out"].numpy()[:] *= 1.01
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", off)
    code, document = parity(capsys)
    assert code == 1
    assert {row["where"] for row in document["rows"] if not row["passed"]} == {"attend_01"}


def test_four_bit_logits_are_told_beside_pytorchs_and_not_judged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, document = parity(capsys, "--int4", int4=32)
    assert code == 0
    rows = {row["tensor"]: row for row in document["rows"] if row["where"] == "int4 decoder"}
    assert set(rows) == {"logits", "KL", OTHERS}
    assert rows["KL"]["max_abs"] > 0
    assert all(row["passed"] and row["limit"] is None for row in rows.values())
    assert parity_command.main([str(language_case().bundle.root), "--int4"]) == 2
    assert "has none but its own; export again with: stc-export" in capsys.readouterr().err


def test_parity_fails_when_one_language_graph_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = OnnxRuntimeEngine.__call__

    def off(self: OnnxRuntimeEngine, *arguments: Any) -> Any:
        outputs = call(self, *arguments)
        if self.name == "attend_01":
            outputs["hidden_out"].numpy()[:] *= 1.01
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", off)
    code, document = parity(capsys)
    assert code == 1
    failed = {row["where"] for row in document["rows"] if not row["passed"]}
    assert "attend_01" in failed
    assert "attend_00" not in failed
    assert "whole decoder" in failed


def test_no_figure_of_logits_passes_when_they_are_nan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = OnnxRuntimeEngine.__call__
    heads = 0

    def off(self: OnnxRuntimeEngine, *arguments: Any) -> Any:
        nonlocal heads
        outputs = call(self, *arguments)
        if self.name == "head":
            heads += 1
            if heads == 1:  # alone; in a chain NaN ends the comparison
                outputs["logits"].numpy()[:] = np.nan
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "__call__", off)
    code, document = parity(capsys)
    assert code == 1
    failed = [row for row in document["rows"] if not row["passed"]]
    assert {row["where"] for row in failed} == {"head"}
    assert {row["tensor"]: row["max_abs"] for row in failed} == {
        "logits": None,
        "KL": None,
        "top-1 gap": None,
    }
