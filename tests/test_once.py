"""Tests of what the tests' processes share: it is made once, and again where making it failed."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.once import Once


def take(root: Path) -> str:
    def make(folder: Path) -> None:
        time.sleep(0.05)  # long enough for all to ask
        with (root / "makers").open("a") as makers:
            makers.write("x")
        (folder / "file").write_text("made")

    return (Once(root)("thing", make) / "file").read_text()


def test_processes_make_a_folder_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(take, [tmp_path] * 3) == ["made"] * 3
    assert (tmp_path / "makers").read_text() == "x"


def test_a_folder_whose_making_failed_is_made_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "left").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        Once(tmp_path)("thing", fail)
    made = Once(tmp_path)("thing", lambda folder: (folder / "whole").touch())
    assert [file.name for file in made.iterdir()] == ["whole"]
