"""Several files of times in one plan: one fit for all of a board, and what memory it then needs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.engines.build.kernels import Kernel
from stc.engines.build.layers import EngineLayers
from stc.engines.build.listing import Compiler, EngineCall
from stc.engines.build.roofline import Factors
from stc.engines.library.boards import BOARDS
from stc.engines.library.targets import TARGETS, TensorRt
from stc.errors import SettingsError
from stc.method.graphs import PRUNERS, vision_graphs
from stc.runtime.planning import plan
from stc.runtime.planning.calibration import Measured
from stc.runtime.planning.plan import Wanted, make_plan
from stc.runtime.planning.show import calibration_line

RTX = TensorRt("tensorrt-rtx", SimpleNamespace(__version__="1.7"))
RTX_3060, RTX_4090 = (
    next(one for one in BOARDS if one.name == name) for name in ("RTX 3060", "RTX 4090")
)
GUESSED = Factors()
TRUE = Factors(compute_efficiency=0.3, bandwidth_efficiency=0.6)


@pytest.fixture
def bundle(half_demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose engines are listed without a compiler: a tower's work is sums, a decoder's is
    bytes."""

    graphs = vision_graphs(Bundle.open(half_demo_bundle).manifest.vision.blocks)
    vision = tuple(graphs.keys() - set(PRUNERS))

    def listed(
        _: Bundle, calls: Iterable[EngineCall], __: Any, compilers: Sequence[Compiler], ___: Any
    ) -> dict[str, dict[EngineCall, EngineLayers]]:
        layers = {
            call: EngineLayers(
                (Kernel("k", "gemm", (), *((10**4, 0, 2, 10**9) if tower else (10**8, 0, 2, 10))),),
                None,
                0,
                0,
            )
            for call in calls
            for tower in [call[0] in vision]
        }
        return {one.target.name: layers for one in compilers}

    monkeypatch.setattr(plan, "list_engines", listed)
    return Bundle.open(half_demo_bundle)


def planned(bundle: Bundle, *measured: Measured, factors: Factors = GUESSED) -> dict[str, Any]:
    compilers = [
        Compiler(TARGETS["sm86"], RTX, TARGETS["sm86"]),
        Compiler(TARGETS["orin-nano"], RTX, TARGETS["sm86"]),
    ]
    wanted = Wanted(bundle.manifest.default_settings, 768, factors, measured)
    return make_plan(bundle, wanted, compilers, lambda _: nullcontext())  # type: ignore[arg-type, return-value]


def files(bundle: Bundle) -> list[Measured]:
    """Of frames and of the language side of an RTX 3060 with the factors TRUE, and of a processor's
    frames."""
    ms = planned(bundle, factors=TRUE)["targets"]["sm86"]["boards"]["RTX 3060"]["estimated_ms"]
    chosen, machine = bundle.manifest.default_settings, "RTX 3060, tensorrt-rtx"
    tower = Measured(
        Path("tower.json"), chosen, None, {"reference": ms["reference"]}, machine, RTX_3060
    )
    tokens = {"decoded_token": ms["decoded_token"]}
    language = Measured(Path("language.json"), chosen, 768, tokens, machine, RTX_3060)
    slow = {"reference": 900 * ms["reference"]}
    return [tower, language, Measured(Path("slow.json"), chosen, None, slow, "a processor", None)]


def test_all_files_of_a_board_have_one_fit_in_any_order(bundle: Bundle) -> None:
    for order in islice(permutations(files(bundle)), 0, None, 2):
        document = planned(bundle, *order)
        found = {one["file"]: one for one in document["calibration"]}
        assert list(found) == [str(one.path) for one in order]
        tower, language, slow = (found[f"{name}.json"] for name in ("tower", "language", "slow"))
        assert [one["used"] for one in (tower, language, slow)] == [True, True, False]
        for name in ("compute_efficiency", "bandwidth_efficiency"):
            assert document["factors"][name] == tower[name] == language[name] != slow[name]
        # One pair of factors explains both, and estimates are made with it.
        ms = document["targets"]["sm86"]["boards"]["RTX 3060"]["estimated_ms"]
        for one, stage in ((tower, "reference"), (language, "decoded_token")):
            assert one["stages"].keys() == {stage}
            assert one["error"] < 0.05
        measured = language["stages"]["decoded_token"]["measured_ms"]
        assert ms["decoded_token"] == pytest.approx(measured, rel=0.05)
        assert "calibrated by tower.json on RTX 3060, tensorrt-rtx: " in calibration_line(tower)


def test_one_stage_measured_twice_counts_twice(bundle: Bundle) -> None:
    tower, _, _ = files(bundle)
    slower = {"reference": 4 * tower.ms["reference"]}
    twice = planned(bundle, tower, replace(tower, path=Path("hot.json"), ms=slower))
    first, second = twice["calibration"]
    # Between both: half of one, twice the other.
    assert first["error"] == pytest.approx(1.0, rel=0.1)
    assert second["error"] == pytest.approx(0.5, rel=0.1)


def test_files_of_two_boards_are_refused_before_anything_is_compiled(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, language, _ = files(bundle)
    monkeypatch.setattr(plan, "list_engines", lambda *_: sys.exit("compiled"))
    with pytest.raises(SettingsError, match="measured on RTX 3060 and RTX 4090, expected one"):
        planned(bundle, tower, replace(language, board=RTX_4090))


def test_a_board_whose_own_compiler_is_not_here_may_hold_weights_once_for_every_size(
    bundle: Bundle,
) -> None:
    targets = planned(bundle)["targets"]
    [sm86] = {one["needed_bytes"] for one in targets["sm86"]["boards"].values()}
    [nano] = {one["needed_bytes"] for one in targets["orin-nano"]["boards"].values()}
    assert nano > sm86
