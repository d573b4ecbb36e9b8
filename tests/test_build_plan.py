"""Which engines a bundle needs, and for which GPUs."""

from __future__ import annotations

import pytest

from stc.engines.gpu.cuda import DeviceFacts
from stc.engines.library.plan import Buckets, EngineSpec, choose_buckets, plan_engines, shape_at
from stc.engines.library.targets import TARGETS, joined_name, parse_targets, target_of
from stc.errors import EngineError, SettingsError
from stc.manifest import DefaultSettings, FileEntry, GraphEntry, LanguageSpec, Manifest, PortEntry
from stc.settings import PRESETS, scaled
from tests.tiny_bundle import SPEC, provenance

TOKENS = SPEC.tokens
BUCKETS = Buckets(recomputed=(3, 6), kept=(2,))


def port(name: str, *shape: int | str, dtype: str = "float16") -> PortEntry:
    return PortEntry.model_validate({"name": name, "shape": shape, "dtype": dtype})


def entry(inputs: tuple[PortEntry, ...], outputs: tuple[PortEntry, ...]) -> GraphEntry:
    file = FileEntry(path="graphs/x.onnx", sha256="0" * 64, size_bytes=1)
    return GraphEntry(file=file, inputs=inputs, outputs=outputs)


def manifest(*, language: bool = False) -> Manifest:
    hidden, count = port("hidden", TOKENS, 32), port("count", 1, dtype="int64")
    graphs = {
        "embed": entry((port("pixel_values", 3, 20, 20),), (hidden,)),
        "select": entry((port("score", TOKENS), count), (port("indices", "M"),)),
        "update_00": entry((hidden, port("indices", "M")), (port("rows", "M", 32),)),
        "mlp_00": entry((port("rows", "M", 32),), (port("residual", "M", 32),)),
        "prune_gaussian": entry((hidden, count), (port("kept", "k", 16),)),
    }
    spec = None
    if language:
        graphs["attend_00"] = entry(
            (port("hidden", "m", 16), port("keys", 1, "S", 8)), (port("hidden_out", "m", 16),)
        )
        spec = LanguageSpec(
            width=16,
            blocks=1,
            query_heads=2,
            key_heads=1,
            head_width=8,
            mlp_width=8,
            vocabulary=9,
            max_positions=600,
            rotary_base=1e4,
            rms_norm_eps=1e-6,
            activation="silu",
            tied_head=True,
            video_token_id=8,
            stop_token_ids=(7,),
        )
    return Manifest(
        vision=SPEC,
        language=spec,
        graphs=graphs,
        files=(),
        settings=DefaultSettings(**vars(PRESETS["off"])),
        provenance=provenance(),
    )


def of(specs: list[EngineSpec], graph: str) -> list[EngineSpec]:
    return [spec for spec in specs if spec.graph == graph]


def test_one_engine_holds_every_ratio_where_several_profiles_are_known_good() -> None:
    specs = plan_engines(manifest(), BUCKETS, several_profiles=True)
    assert [spec.graph for spec in specs] == [
        "embed",
        "select",
        "select",
        "update_00",
        "mlp_00",
        "prune_gaussian",
    ]
    (update,) = of(specs, "update_00")
    assert update.profiles == ({"M": 3}, {"M": 6})
    assert update.stem == "update_00-M3-M6"
    assert of(specs, "embed") == [EngineSpec("embed", ({},))]


def test_each_size_has_an_engine_of_its_own_where_several_profiles_are_not_known_good() -> None:
    specs = plan_engines(manifest(), BUCKETS, several_profiles=False)
    sizes = [spec.profiles for spec in of(specs, "update_00")]
    assert sizes == [({"M": 3},), ({"M": 6},)]


@pytest.mark.parametrize("several_profiles", [True, False])
def test_an_mlp_is_one_engine_for_both_kinds_of_frame(several_profiles: bool) -> None:
    specs = plan_engines(manifest(), BUCKETS, several_profiles=several_profiles)
    (mlp,) = of(specs, "mlp_00")
    assert mlp.profiles == ({"M": 3}, {"M": 6}, {"M": TOKENS})
    every = plan_engines(manifest(), Buckets((6, TOKENS), ()), several_profiles=several_profiles)
    assert of(every, "mlp_00")[0].profiles == ({"M": 6}, {"M": TOKENS})


def test_counts_are_baked_one_engine_each() -> None:
    specs = plan_engines(manifest(), BUCKETS, several_profiles=True)
    assert of(specs, "select") == [
        EngineSpec("select", ({"M": 3},), 3),
        EngineSpec("select", ({"M": 6},), 6),
    ]
    assert of(specs, "prune_gaussian") == [EngineSpec("prune_gaussian", ({"k": 2},), 2)]


def test_language_blocks_get_two_chunks_at_every_context() -> None:
    specs = plan_engines(manifest(language=True), BUCKETS, several_profiles=True)
    (attend,) = of(specs, "attend_00")
    # The model's longest context is 600.
    assert attend.profiles == tuple({"m": m, "S": 600} for m in (16, 64))


def test_language_blocks_are_few_where_each_size_holds_the_weights_anew() -> None:
    specs = plan_engines(manifest(language=True), BUCKETS, several_profiles=False)
    sizes = [spec.profiles for spec in of(specs, "attend_00")]
    assert sizes == [({"m": 16, "S": 600},), ({"m": 64, "S": 600},)]


def test_buckets_follow_the_ratios_and_budgets_asked_for() -> None:
    buckets = choose_buckets(manifest(), (0.5, 0.25, 0.25, 0.001), (4, 0))
    assert buckets == Buckets(recomputed=(1, 6, 12), kept=(4, SPEC.pooled))
    assert choose_buckets(manifest(), (1.0,), None).kept == (2, SPEC.pooled)


def test_a_default_build_has_an_engine_for_the_budget_of_every_preset() -> None:
    kept = choose_buckets(manifest(), (0.25,), None).kept
    budgets = {scaled(preset, SPEC.pooled).kept(SPEC.pooled) for preset in PRESETS.values()}
    assert budgets <= set(kept)


@pytest.mark.parametrize(("ratios", "budgets"), [((0.0,), None), ((0.25,), (SPEC.pooled + 1,))])
def test_sizes_out_of_range_are_refused(
    ratios: tuple[float, ...], budgets: tuple[int, ...] | None
) -> None:
    with pytest.raises(SettingsError):
        choose_buckets(manifest(), ratios, budgets)


def test_shapes_take_their_sizes() -> None:
    assert shape_at((4, "M", 2), {"M": 7}) == (4, 7, 2)


def test_targets_are_parsed_in_the_tables_order_each_once() -> None:
    targets = parse_targets("sm120+sm86+sm86+sm89")
    assert joined_name(targets) == "sm86+sm89+sm120"
    assert [target.sm for target in targets] == ["SM86", "SM89", "SM120"]


@pytest.mark.parametrize("names", ["sm90", "sm86+", "", "sm86,sm89"])
def test_unknown_targets_are_refused_with_the_targets_there_are(names: str) -> None:
    with pytest.raises(EngineError, match=r"expected this-device, orin-agx.*sm121"):
        parse_targets(names)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        ("sm86+orin_nano", "orin-nano"),
        ("ORIN-NANO", "orin-nano"),
        ("sm_86", "sm86"),
        ("this_device", "this-device"),
    ],
)
def test_a_target_with_a_slip_in_its_name_is_told(names: str, meant: str) -> None:
    with pytest.raises(EngineError, match=f"; use {meant}$"):
        parse_targets(names)


def test_another_gpu_is_not_taken_for_a_slip() -> None:
    for other in ("sm90", "sm110", "sm8", "sm12"):
        with pytest.raises(EngineError, match=r"joined by \+$"):
            parse_targets(other)
    with pytest.raises(EngineError, match=r"joined by \+$"):
        parse_targets("this_device", this_device=False)


def gpu(capability: tuple[int, int], board: str, modules: str = "") -> DeviceFacts:
    return DeviceFacts("GPU", capability, 1 << 30, 1 << 30, False, board, modules)


@pytest.mark.parametrize(
    ("capability", "board", "name"),
    [
        ((8, 7), "NVIDIA Jetson AGX Orin Developer Kit", "orin-agx"),
        ((8, 7), "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "orin-nx"),
        ((8, 7), "NVIDIA Jetson Orin Nano Developer Kit Super", "orin-nano"),
        ((8, 9), "", "sm89"),
        ((12, 1), "NVIDIA DGX Spark", "sm121"),
    ],
)
def test_a_gpu_is_recognised_by_capability_and_board(
    capability: tuple[int, int], board: str, name: str
) -> None:
    assert target_of(gpu(capability, board)) is TARGETS[name]


@pytest.mark.parametrize(("capability", "board"), [((9, 0), ""), ((8, 7), "a carrier of ours")])
def test_a_gpu_outside_the_table_is_no_target(capability: tuple[int, int], board: str) -> None:
    assert target_of(gpu(capability, board)) is None


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        ("vendor,carrier nvidia,p3767-0001 nvidia,tegra234", "orin-nx"),
        ("vendor,carrier nvidia,p3767-0004 nvidia,tegra234", "orin-nano"),
        ("vendor,carrier nvidia,p3701-0005 nvidia,tegra234", "orin-agx"),
    ],
)
def test_a_board_of_another_maker_is_known_by_its_module(modules: str, name: str) -> None:
    assert target_of(gpu((8, 7), "a carrier of ours", modules)) is TARGETS[name]
