"""Measured times beside estimates: which factors make them agree, and files that say nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.engines.build.kernels import Kernel
from stc.engines.build.layers import EngineLayers
from stc.engines.build.roofline import Factors, Roofline
from stc.engines.library.boards import BOARDS
from stc.errors import SettingsError
from stc.runtime.planning.calibration import calibrating_board, fit, read_measured
from stc.settings import Settings
from tests.device_cases import manifest

BOARD = BOARDS[0]
GPU = {
    "name": "NVIDIA GeForce RTX 3060",
    "board": None,
    "memory_bytes": 12_500_000_000,
    "power_mode": "170.00 W",
}
"""Of what stc-bench tells of the GPU (`gpu_facts`), what matters here."""


def stage(macs: int, moved: int, kernels: int = 20) -> Callable[[Factors], float]:
    made = [Kernel("k", "gemm", (), moved // kernels, 0, 2, macs // kernels)] * kernels
    return Roofline([EngineLayers(tuple(made), None, 0, 0)], BOARD).ms


STAGES = {
    "reference": stage(10**12, 10**8),
    "reuse_layerwise": stage(10**9, 10**9),
    "decoded_token": stage(10**8, 5 * 10**9),
}


@pytest.mark.parametrize(
    ("compute", "bandwidth"), [(0.42, 0.8), (0.9, 0.11), (2e-4, 3e-3)], ids=["", "", "a processor"]
)
def test_the_factors_that_made_the_times_are_found(compute: float, bandwidth: float) -> None:
    made = Factors(compute_efficiency=compute, bandwidth_efficiency=bandwidth, kernel_us=3.0)
    measured = {name: one(made) for name, one in STAGES.items()}
    found = fit(measured, STAGES, Factors(kernel_us=3.0))
    assert found.factors.compute_efficiency == pytest.approx(compute, rel=0.02)
    assert found.factors.bandwidth_efficiency == pytest.approx(bandwidth, rel=0.02)
    assert found.factors.kernel_us == 3.0
    assert found.error < 0.02
    assert found.errors["reference"] == pytest.approx(0.0, abs=0.02)


def test_an_error_that_no_factors_explain_is_told() -> None:
    """A token that takes as long as a hundred times its bytes, and a frame that does not."""
    measured = {name: one(Factors()) for name, one in STAGES.items()}
    measured["decoded_token"] *= 100
    found = fit(measured, STAGES, Factors())
    assert found.error > 0.5
    assert found.errors["decoded_token"] < -0.5
    expected = {name: found.fitted_ms[name] / ms - 1 for name, ms in measured.items()}
    assert found.errors == pytest.approx(expected)


def test_what_times_cannot_tell_apart_stays_together() -> None:
    found = fit({"reference": STAGES["reference"](Factors(0.3, 0.3))}, STAGES, Factors())
    apart = found.factors.compute_efficiency / found.factors.bandwidth_efficiency
    assert apart == pytest.approx(1.0, rel=0.1)


FRAME_TIMES = ("reference_ms_p50", "reuse_ms_p50")


def document(**changed: Any) -> dict[str, Any]:
    """Of stc-bench, on the bundle of `tests.device_cases`."""
    made = manifest().provenance
    return {
        "bundle": made.checkpoint,
        "precision": made.precision,
        "backend": "tensorrt-rtx",
        "weights": None,
        "settings": {**vars(Settings()), "selection": "shared"},
        "reference_ms_p50": 8.0,
        "reuse_ms_p50": 4.0,
        "machine": {"processor": "a processor"},
        "gpu": GPU,
        **changed,
    }


def prefill_document() -> dict[str, Any]:
    """Of stc-bench --prefill; test_language_on_device.py compares its keys with the command's."""
    times = {"prefill_preset_ms_p50": 3.0, "prefill_keep_all_ms_p50": 9.0, "decode_ms_p50": 2.0}
    found = document(**times, context=1000)
    return {name: found[name] for name in found if name not in FRAME_TIMES}


def read(path: Path, what: object) -> Any:
    path.write_text(what if isinstance(what, str) else json.dumps(what))
    return read_measured(path, manifest())


def test_a_file_tells_stages_machine_and_board(tmp_path: Path) -> None:
    found = read(tmp_path / "o.json", document())
    assert found.ms == {"reference": 8.0, "reuse_shared": 4.0}
    assert found.board is not None
    assert (found.board.name, found.context) == ("RTX 3060", None)
    assert found.machine == "NVIDIA GeForce RTX 3060, tensorrt-rtx"


def test_prefill_and_tokens_are_stages_too(tmp_path: Path) -> None:
    found = read(tmp_path / "o.json", prefill_document())
    assert found.ms == {"prefill": 3.0, "prefill_all": 9.0, "decoded_token": 2.0}
    assert found.context == 1000
    assert found.board is not None


def test_times_of_two_boards_are_refused(tmp_path: Path) -> None:
    other = {**GPU, "name": "NVIDIA GeForce RTX 4090", "memory_bytes": 25_000_000_000}
    found = [
        read(tmp_path / "o.json", one)
        for one in (document(), prefill_document(), document(gpu=None), document(gpu=other))
    ]
    board = calibrating_board(found[:3])
    assert board is not None
    assert board.name == "RTX 3060"
    assert calibrating_board(found[2:3]) is None
    with pytest.raises(SettingsError, match="measured on RTX 3060 and RTX 4090, expected one"):
        calibrating_board(found)


@pytest.mark.parametrize(
    "changed",
    [
        {"backend": "onnxruntime"},
        {"gpu": None},
        {"gpu": {**GPU, "memory_bytes": 8_300_000_000}},
        {"gpu": {**GPU, "name": "Orin", "board": "NVIDIA Jetson AGX Orin", "power_mode": "30W"}},
    ],
)
def test_a_processor_is_no_board(changed: dict[str, Any], tmp_path: Path) -> None:
    assert read(tmp_path / "o.json", document(**changed)).board is None


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("{", "no JSON"),
        ([1], "no document of stc-bench; write it with stc-bench BUNDLE --json FILE"),
        ({"bundle": "x"}, "no document of stc-bench"),
        (document(settings={"budget": "many"}), r"o\.json: holds --budget: got 'many'"),
        (document(settings={"colour": "red"}), "no document of stc-bench"),
        (document(reference_ms_p50=-1.0), "no document of stc-bench"),
        (document(reference_ms_p50="fast"), "no document of stc-bench"),
        (document(reference_ms_p50=None, reuse_ms_p50=None), "no times of a frame or a token"),
        (document(bundle="another"), r"measured on 'another', .*run stc-bench on this bundle"),
        (document(precision="fp16"), "measured on .*'fp16'.*, expected .*, fp32"),
        (document(weights="int4"), "weights 'int4'"),
        (document(context="long"), "holds context: got 'long'"),
    ],
)
def test_a_file_that_says_nothing_of_the_bundle_is_refused(
    what: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        read(tmp_path / "o.json", what)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_measured(tmp_path / "none.json", manifest())
