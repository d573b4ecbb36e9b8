"""Device memory is counted before anything runs, and what would make it fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stc.engines.plan import context_rows
from stc.engines.preflight import Demand, check_fits
from stc.engines.targets import GIB
from stc.errors import EngineError
from stc.manifest import (
    LANGUAGE_WEIGHTS,
    WEIGHTS,
    DefaultSettings,
    FileEntry,
    LanguageSpec,
    Manifest,
    Precision,
    VisionSpec,
)
from stc.settings import PRESETS
from tests.tiny_bundle import provenance

SO400M = VisionSpec(
    image_size=384,
    patch_size=14,
    width=1152,
    heads=16,
    mlp_width=4304,
    blocks=26,
    activation="gelu_pytorch_tanh",
    layer_norm_eps=1e-6,
    language_width=896,
    projector_activation="gelu",
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
QWEN = LanguageSpec(
    width=896,
    blocks=24,
    query_heads=14,
    key_heads=2,
    head_width=64,
    mlp_width=4864,
    vocabulary=152000,
    most_positions=32768,
    rotary_base=1e6,
    rms_norm_eps=1e-6,
    activation="silu",
    tied_head=True,
    video_token_id=151647,
    stop_token_ids=(151645,),
)
WEIGHTS_BYTES = 800_401_152


def manifest(precision: Precision = "fp16", language: LanguageSpec | None = None) -> Manifest:
    size = WEIGHTS_BYTES * (2 if precision == "fp32" else 1)
    return Manifest(
        vision=SO400M,
        language=language,
        graphs={},
        files=(FileEntry(path=WEIGHTS, sha256="0" * 64, size_bytes=size),),
        settings=DefaultSettings(**vars(PRESETS["off"])),
        provenance=provenance().model_copy(update={"precision": precision}),
    )


DEMAND = Demand(manifest=manifest(), context=0)


def refused(demand: Demand, free_gib: float) -> str:
    with pytest.raises(EngineError) as caught:
        check_fits(demand, "Orin", int(free_gib * GIB))
    line = str(caught.value)
    assert "\n" not in line
    assert f"expected at most {free_gib:.2f} GiB, what is free" in line
    return line.split("; ")[-1]


def test_references_are_two_sets_of_125_mib_per_stream() -> None:
    # algorithm: 26 blocks x (key + value + residual) x 729 x 1152 x 2 bytes
    one_set = 26 * 3 * 729 * 1152 * 2
    assert DEMAND.parts["references"] == 2 * one_set
    assert replace(DEMAND, streams=3).parts["references"] == 6 * one_set
    assert round(one_set / 2**20) == 125


def test_what_fits_says_so_with_its_parts() -> None:
    line = check_fits(DEMAND, "Orin", 8 * GIB)
    assert line.startswith("Orin: needs 1.")
    assert "weights 0.90" in line
    assert line.endswith("; 8.00 GiB are free")


def test_weights_and_workspace_of_real_engines_replace_the_estimates() -> None:
    known = replace(DEMAND, weights_bytes=10, workspace_bytes=20)
    assert (known.parts["weights"], known.parts["workspace"]) == (10, 20)


def test_streams_share_weights_and_workspace() -> None:
    one, two = DEMAND.parts, replace(DEMAND, streams=2).parts
    assert {name for name in one if one[name] != two[name]} == {"references", "work"}


def test_fewer_streams_are_named_first() -> None:
    assert refused(replace(DEMAND, streams=4), 2.2) == "3 streams would fit: open no more"
    assert refused(replace(DEMAND, streams=2), 1.68) == (
        "1 stream would fit: leave out --compare-dense, which is one more"
    )


def test_a_smaller_window_is_named_where_keys_and_values_are_too_many() -> None:
    demand = Demand(manifest=manifest(language=QWEN), context=4096)
    need = demand.total_bytes / GIB
    assert refused(demand, need - 0.03) == "use --window 768 or less"
    assert refused(demand, need - 0.06).startswith("no setting makes it fit")


def test_without_questions_the_language_side_takes_nothing() -> None:
    asking = Demand(manifest=manifest(language=QWEN), context=context_rows(None))
    watching = replace(asking, context=0)
    assert watching.parts["KV"] == 0
    # 4,096 rows of 24 blocks' keys and values, 2 heads of 64, float16
    assert asking.parts["KV"] == 4096 * 24 * 2 * 2 * 64 * 2
    half = WEIGHTS_BYTES // 2
    files = (*manifest().files, FileEntry(path=LANGUAGE_WEIGHTS, sha256="0" * 64, size_bytes=half))
    both = asking.manifest.model_copy(update={"files": files})
    more = replace(asking, manifest=both).parts["weights"]
    assert more == pytest.approx(1.5 * asking.parts["weights"], rel=1e-6)
    assert replace(watching, manifest=both).parts["weights"] == watching.parts["weights"]


def test_contexts_follow_the_window() -> None:
    assert [context_rows(window) for window in (None, 100, 768, 769, 3840)] == [
        4096,
        1024,
        1024,
        4096,
        4096,
    ]


def test_half_precision_is_named_where_it_helps() -> None:
    assert refused(Demand(manifest=manifest("fp32"), context=0), 2.0) == (
        "export with --precision fp16"
    )


def test_what_cannot_fit_is_told_how_much_is_lacking() -> None:
    mend = refused(DEMAND, 1.0)
    assert mend == "no setting makes it fit: free 0.67 GiB, or use a larger device"


def test_an_engine_per_size_holds_the_weights_that_often() -> None:
    assert replace(DEMAND, copies=3).parts["weights"] == 3 * DEMAND.parts["weights"]
