"""Device memory is counted before anything runs, and what would make it fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stc.engines.library.plan import CHUNKS, CONTEXTS, context_rows, plan_engines, window_of
from stc.engines.library.preflight import (
    ENGINE_OVERHEAD,
    LANGUAGE_OVERHEAD,
    Demand,
    check_fits,
    copies_of,
)
from stc.engines.library.targets import GIB
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
from stc.runtime.memory.settings import MemorySettings
from stc.settings import PRESETS
from tests.squares import square
from tests.test_build_plan import BUCKETS
from tests.test_build_plan import manifest as build_manifest
from tests.tiny_bundle import provenance

SO400M = VisionSpec(
    **square(image_size=384, patch_size=14),
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
    max_positions=32768,
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
    assert line.startswith("Orin: needs 1.98 GiB: ")
    assert "weights 1.21" in line
    assert line.endswith("; 8.00 GiB are free")


def test_weights_and_workspace_of_real_engines_replace_the_estimates() -> None:
    known = replace(DEMAND, weights_bytes=10, workspace_bytes=20)
    assert (known.parts["weights"], known.parts["workspace"]) == (10, 20)


def test_streams_share_weights_and_workspace() -> None:
    one, two = DEMAND.parts, replace(DEMAND, streams=2).parts
    assert {name for name in one if one[name] != two[name]} == {"references", "work"}


def test_fewer_streams_are_named_first() -> None:
    assert refused(replace(DEMAND, streams=4), 2.55) == "3 streams would fit: open no more"
    assert refused(replace(DEMAND, streams=2), 2.0) == (
        "1 stream would fit: leave out --compare-dense, which is one more"
    )


def test_a_smaller_window_is_named_where_keys_and_values_are_too_many() -> None:
    demand = Demand(manifest=manifest(language=QWEN), context=4096)
    need = demand.total_bytes / GIB
    assert refused(demand, need - 0.03) == (
        "use --memory window --window 720 or less, where it takes them"
    )
    assert refused(demand, need - 0.06).startswith("no setting makes it fit")


def test_without_questions_the_language_side_takes_nothing() -> None:
    asking = Demand(manifest=manifest(language=QWEN), context=context_rows(None))
    watching = replace(asking, context=0)
    assert watching.parts["KV"] == 0
    # 4,096 rows of 24 blocks' keys and values, 2 heads of 64, float16
    assert asking.parts["KV"] == 4096 * 24 * 2 * 2 * 64 * 2
    asking = replace(asking, manifest=with_language_weights(LANGUAGE_BYTES))
    watching = replace(asking, context=0)
    assert watching.parts["weights"] == DEMAND.parts["weights"]
    assert asking.parts["weights"] > watching.parts["weights"] + LANGUAGE_BYTES


def test_rows_of_an_answer_that_frames_are_fetched_for_are_counted() -> None:
    assert MemorySettings(memory="all").rows(49) == 4096
    assert MemorySettings(window=720).rows(49) == 1024
    assert MemorySettings(memory="rekv").rows(49) == 4096 + 4096  # 64 frames
    assert MemorySettings(memory="rekv", top_pages=60).rows(12) == 4096 + 1024
    assert MemorySettings(memory="rekv", window=100, top_pages=8).rows(49) == 1024 + 1024


def test_a_window_leaves_room_for_a_full_size_frame_beside_the_rows_of_a_call() -> None:
    for rows in CONTEXTS:
        assert window_of(rows) + 196 <= rows - CHUNKS[-1]


def test_contexts_follow_the_window() -> None:
    assert [context_rows(window) for window in (None, 100, 720, 721, 3840)] == [
        4096,
        1024,
        1024,
        4096,
        4096,
    ]


def test_half_precision_is_named_where_it_helps() -> None:
    assert refused(Demand(manifest=manifest("fp32"), context=0), 2.9) == (
        "export with --precision fp16"
    )


def test_what_cannot_fit_is_told_how_much_is_lacking() -> None:
    fix = refused(DEMAND, 1.0)
    assert fix == "no setting makes it fit: free 0.98 GiB, or use a larger device"


# Engines that hold one graph's weights.

UPDATE_BYTES = 26 * 3 * 1152**2 * 2
"""Of all blocks' `update`: queries, values and output."""
HEAD_BYTES = 152_000 * 896 * 2
LANGUAGE_BYTES = 988_000_000


def with_language_weights(size: int, *, tied: bool = True) -> Manifest:
    made = manifest(language=QWEN.model_copy(update={"tied_head": tied}))
    file = FileEntry(path=LANGUAGE_WEIGHTS, sha256="0" * 64, size_bytes=size)
    return made.model_copy(update={"files": (*made.files, file)})


def test_attentions_weights_are_held_once_more_for_reference_frames() -> None:
    whole = WEIGHTS_BYTES + UPDATE_BYTES + 26 * 1152**2 * 2
    assert DEMAND.parts["weights"] == pytest.approx(ENGINE_OVERHEAD * whole, rel=1e-6)


def test_an_update_engine_per_size_holds_its_weights_that_often_and_no_other_does() -> None:
    one, three = (replace(DEMAND, update_copies=count).parts["weights"] for count in (1, 3))
    assert three - one == pytest.approx(2 * ENGINE_OVERHEAD * UPDATE_BYTES, rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_engine_per_size_holds_its_weights_that_often_but_the_head_once(
    tied: bool,
) -> None:
    """The host looks text tokens up: no engine holds their table, but a head may that is tied."""
    size = LANGUAGE_BYTES if tied else LANGUAGE_BYTES + HEAD_BYTES
    asking = Demand(manifest=with_language_weights(size, tied=tied), context=4096)
    for copies in (1, 2):
        demand = replace(asking, language_copies=copies, update_copies=3)
        language = demand.parts["weights"] - replace(demand, context=0).parts["weights"]
        blocks = LANGUAGE_BYTES - HEAD_BYTES
        expected = LANGUAGE_OVERHEAD * (copies * blocks + HEAD_BYTES)
        assert language == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("several_profiles", "copies"), [(True, (1, 1)), (False, (2, 2))])
def test_copies_are_counted_in_the_plan(several_profiles: bool, copies: tuple[int, int]) -> None:
    """Two ratios; two chunks at one context."""
    planned = plan_engines(
        build_manifest(language=True), BUCKETS, several_profiles=several_profiles
    )
    assert (copies_of("update_00", planned), copies_of("attend_00", planned)) == copies
    assert copies_of("no such graph", planned) == 1
