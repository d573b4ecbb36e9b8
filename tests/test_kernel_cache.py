"""Kernels that TensorRT-RTX compiles are kept for the next process; on a mock."""

from __future__ import annotations

from pathlib import Path

import pytest

from stc.bundles.contents import KERNELS
from stc.engines.library.targets import Flavour
from tests.device_cases import SETTINGS, Rig, assert_same_stream

RTX: Flavour = "tensorrt-rtx"


def compiled(path: Path) -> list[str]:
    """The engines compiled by a process that streams some frames and closes its backend."""
    rig = Rig(path, flavour=RTX)
    assert_same_stream(rig.session(), SETTINGS, 6)
    rig.backend.close()
    return rig.trt.compiled


def kernels_of(path: Path) -> Path:
    (file,) = path.rglob(KERNELS)
    return file


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert compiled(tmp_path)
    written_ns = kernels_of(tmp_path).stat().st_mtime_ns
    assert compiled(tmp_path) == []
    assert kernels_of(tmp_path).stat().st_mtime_ns == written_ns


@pytest.mark.parametrize("content", [b"", b"garbage", b'["0.9", "embed"]'])
def test_kernels_that_are_of_no_use_are_replaced(tmp_path: Path, content: bytes) -> None:
    first = compiled(tmp_path)
    kernels_of(tmp_path).write_bytes(content)
    assert compiled(tmp_path) == first
    assert compiled(tmp_path) == []


def test_a_bundle_that_cannot_be_written_is_told_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stc.engines.tensorrt.shared.replace_file", full)
    rig = Rig(tmp_path, flavour=RTX)
    assert_same_stream(rig.session(), SETTINGS, 6)
    rig.backend.close()
    [told] = [line for line in rig.said if "kernels" in line]
    assert "No space left on device" in told


def test_native_tensorrt_keeps_none(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert_same_stream(rig.session(), SETTINGS, 6)
    rig.backend.close()
    assert not list(tmp_path.rglob(KERNELS))
