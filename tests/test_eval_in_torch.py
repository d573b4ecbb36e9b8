"""`stc-eval` with a method that runs in PyTorch, beside dense frames there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from stc.runtime.commands.eval import main
from stc.runtime.evaluate import data as evaluate_data
from stc.runtime.evaluate.method import Encoded, Method, Pixels, Runtime, Towers
from stc.runtime.evaluate.methods import METHODS
from tests.as_user import standing
from tests.language_cases import language_case
from tests.made_scenes import made_scenes

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True, kw_only=True)
class InTorch(Method):
    """Dense frames in PyTorch, of which the first `keep` tokens are read."""

    name: str = "in-torch"
    about: str = "the first tokens"
    source: str = "control"
    keep: int = 2
    runtime: ClassVar[Runtime] = "PyTorch"

    def open(self, towers: Towers) -> InTorchEncoder:
        return InTorchEncoder(towers, self.keep)


class InTorchEncoder:
    def __init__(self, towers: Towers, keep: int) -> None:
        self.torch, self.kept = towers.torch, np.arange(keep)

    def push(self, pixels: Pixels) -> Encoded:
        whole = self.torch.project(self.torch.dense(pixels))
        return Encoded(whole[self.kept], self.kept, whole, None, 7)


def test_a_method_may_run_in_pytorch(
    tmp_path: Path, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_data, "frozen_test", made_scenes)
    monkeypatch.setitem(METHODS, "in-torch", InTorch())
    flags = ["--methods", "in-torch:keep=3", "--output", tmp_path / "out", "--json", "-"]
    done = run_main(main, language_case().bundle.root, *flags)
    assert done.returncode == 2
    assert done.stderr.endswith("which was not given; add --checkpoint DIR_OR_ID\n")
    assert standing(tmp_path) == {}
    done = run_main(
        main, language_case().bundle.root, *flags, "--checkpoint", language_case().checkpoint
    )
    assert done.returncode == 0, done.stderr
    method = json.loads(done.stdout.splitlines()[-1])["methods"]["in-torch:keep=3"]
    assert (method["runtime"], method["settings"]) == ("PyTorch", {"keep": 3})
    assert method["tokens_per_frame"] == 3
    assert 0.9999 < method["cosine_min"] < method["cosine"] + 1e-9
    # Beside dense frames in PyTorch, which do nothing less.
    assert 0.2 < method["tower_cost_ms"] < 5
