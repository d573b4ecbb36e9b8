"""Controls and ablations of STC-Cacher, and every method there is on one bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.export.models.reference import TorchVision
from stc.export.towers.part import VisionWeights
from stc.manifest import Grid, VisionSpec
from stc.method.family import FrameKind, frame_program, macs
from stc.runtime.evaluate.method import Encoded, Method, Towers
from stc.runtime.evaluate.methods import ALONE, METHODS, methods_of, token_pruning
from stc.runtime.evaluate.methods.controls.ablations import AttentionOnly, MlpOnly, ReuseEncoder
from stc.runtime.evaluate.methods.controls.keeping import sub_grid
from stc.runtime.evaluate.methods.controls.recompute import RandomRecompute, RandomRecomputeEncoder
from stc.runtime.evaluate.methods.stc_methods import StcEncoder
from stc.runtime.stream.opening import open_backend
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, Settings
from tests.oracle.backend import OracleBackend
from tests.other_tower import SPEC, OtherWeights, oracle_weights
from tests.vision_cases import made_up

Array = NDArray[np.float32]
WEIGHTS: list[VisionWeights] = [made_up(blocks=3, image_size=20), OtherWeights()]
INTERVAL_3 = Settings(reference_interval=3, recompute_ratio=0.3, budget=0)


@pytest.fixture(scope="module")
def towers(demo_bundle: Path) -> Iterator[Towers]:
    bundle = Bundle.open(demo_bundle)
    # Made before what keeps a test's process from taking threads of its own.
    backend = open_backend(bundle, "cpu", language=False, owns_process=False)
    tower = VisionTower(backend, bundle.manifest.vision, bundle.manifest.provenance.precision)
    with Towers(bundle, tower) as towers:
        yield towers


def frames_of(spec: VisionSpec, count: int) -> list[Array]:
    """Noise of which another part changes in every frame."""
    random = np.random.default_rng(0)
    frames = [random.uniform(-1, 1, spec.pixel_shape).astype(np.float32)]
    for index in range(1, count):
        frames.append(frames[-1].copy())
        rows = slice(index * 5 % spec.image_height, index * 5 % spec.image_height + 9)
        changed = frames[-1][:, rows]
        changed[:] = random.uniform(-1, 1, changed.shape)
    return frames


def streamed(method: Method, towers: Towers, count: int = 5) -> list[Encoded]:
    encoder = method.open(towers)
    return [encoder.push(pixels) for pixels in frames_of(towers.spec, count)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_again_alike(name: str, towers: Towers) -> None:
    method, spec = METHODS[name], towers.spec
    first, again = streamed(method, towers), streamed(method, towers)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.kept, other.kept)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.kept.dtype == np.int64 and one.tokens.shape == (
            len(one.kept),
            spec.language_width,
        )
        assert (np.diff(one.kept) > 0).all()
        assert ((one.kept >= 0) & (one.kept < spec.pooled)).all()
        assert np.isfinite(one.tokens).all()
        assert one.whole is None or one.whole.shape == (spec.pooled, spec.language_width)
        if one.recomputed is not None:
            assert one.recomputed.dtype == np.int64 and (np.diff(one.recomputed) > 0).all()
    dense = macs(spec, frame_program(spec, "fp32", PRESETS["off"], "reference"))
    assert all(0 <= one.macs <= dense for one in first)
    assert method.about and method.source and isinstance(method.settings(spec), dict)


@pytest.mark.parametrize("name", [one.name for one in token_pruning(ALONE)])
def test_what_is_kept_is_chosen_of_the_towers_tokens(name: str, towers: Towers) -> None:
    cacher = StcEncoder(towers.vision, Settings(budget=0))
    dense = StcEncoder(towers.vision, PRESETS["off"])
    for method, tower in ((METHODS[name], dense), (METHODS[f"cacher+{name}"], cacher)):
        choose = method.chooser(towers)
        assert choose is not None
        for pixels, got in zip(frames_of(towers.spec, 5), streamed(method, towers), strict=True):
            whole = tower.push(pixels)
            kept = choose(whole.tokens)
            np.testing.assert_array_equal(got.kept, kept)
            np.testing.assert_array_equal(got.tokens, whole.tokens[kept])
            assert got.macs == whole.macs


def test_budgets_are_those_of_the_presets(towers: Towers) -> None:
    pruner, paper = (streamed(METHODS[name], towers)[-1] for name in ("pruner", "paper"))
    assert METHODS["cacher+dart"].settings(towers.spec) == {
        "keep": 0.3,
        "pivots": 8,
        "reference_interval": 2,
        "recompute_ratio": 0.25,
    }
    [other] = methods_of("cacher+dart:keep=0.5:recompute_ratio=0.5").values()
    told = other.settings(towers.spec)
    assert (told["keep"], told["recompute_ratio"], told["reference_interval"]) == (0.5, 0.5, 2)
    for name in ("dart", "random-keep", "visionzip"):
        assert len(streamed(METHODS[name], towers)[-1].kept) == len(pruner.kept) == 12
    for name in ("cacher+dart", "cacher+random-keep"):
        assert len(streamed(METHODS[name], towers)[-1].kept) == len(paper.kept) == 14
    assert len(streamed(other, towers)[-1].kept) == 24


def test_seeds_draw_apart(towers: Towers) -> None:
    for name in ("random-keep", "random-recompute", "cacher+random-keep"):
        [other] = methods_of(f"{name}:seed=1").values()
        ours, theirs = streamed(METHODS[name], towers, 2), streamed(other, towers, 2)
        assert (ours[1].tokens != theirs[1].tokens).any()


@pytest.mark.parametrize(
    ("rows", "columns", "count", "places"),
    [
        (4, 4, 4, [5, 7, 13, 15]),
        (14, 14, 49, [15 + 28 * row + 2 * column for row in range(7) for column in range(7)]),
        (3, 5, 15, list(range(15))),
        (3, 5, 1, [7]),
        (4, 6, 9, [1, 3, 5, 13, 15, 17, 19, 21, 23]),
    ],
)
def test_a_regular_grid_is_the_largest_there_is(
    rows: int, columns: int, count: int, places: list[int]
) -> None:
    grid = Grid(rows=2 * rows, columns=2 * columns, pooled_rows=rows, pooled_columns=columns)
    got = sub_grid(grid, count)
    most = max(a * b for a in range(1, rows + 1) for b in range(1, columns + 1) if a * b <= count)
    assert len(got) == most
    assert got.tolist() == places
    assert len(set(got // columns)) * len(set(got % columns)) == most


def test_skipped_frames_cost_nothing(towers: Towers) -> None:
    dense = streamed(METHODS["off"], towers, 8)
    copies, sparse = (streamed(METHODS[name], towers, 8) for name in ("copy-last", "sparse-rate"))
    for index in range(8):
        np.testing.assert_array_equal(copies[index].tokens, dense[index // 4 * 4].tokens)
        assert len(sparse[index].kept) == (0 if index % 4 else towers.spec.pooled)
    for kind in (copies, sparse):
        assert 4 * sum(one.macs for one in kind) == sum(one.macs for one in dense)


# STC-Cacher's halves


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda one: one.name)
def test_both_halves_are_the_cacher(weights: VisionWeights) -> None:
    torch, spec = TorchVision(weights), weights.spec
    encoder = ReuseEncoder(torch, INTERVAL_3, attention=True, mlp=True)
    for index, pixels in enumerate(frames_of(spec, 5)):
        got = encoder.push(pixels)
        kind: FrameKind = "reference" if INTERVAL_3.is_reference(index) else "reuse"
        if kind == "reference":
            frame = torch.reference(pixels)
            assert got.recomputed is None
        else:
            frame = torch.reuse(pixels, INTERVAL_3.recomputed(spec.tokens), "layerwise")
            np.testing.assert_array_equal(got.recomputed, frame.indices[0])
        np.testing.assert_allclose(got.tokens, torch.project(frame.hidden), rtol=1e-4, atol=1e-5)
        assert got.macs == macs(spec, frame_program(spec, "fp32", INTERVAL_3, kind))


@pytest.mark.parametrize("half", ["attention", "mlp"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda one: one.name)
def test_a_half_that_recomputes_all_is_dense(weights: VisionWeights, half: str) -> None:
    torch = TorchVision(weights)
    settings = Settings(reference_interval=4, recompute_ratio=1.0, budget=0)
    encoder = ReuseEncoder(torch, settings, attention=half == "attention", mlp=half == "mlp")
    for pixels in frames_of(weights.spec, 4):
        dense = torch.project(torch.dense(pixels))
        np.testing.assert_allclose(encoder.push(pixels).tokens, dense, rtol=1e-4, atol=1e-5)


def test_each_half_reuses_its_own_output_alone() -> None:
    """One block, written out: the other half is that of the tokens as they are."""
    weights = made_up(blocks=1, image_size=20)
    torch, spec = TorchVision(weights), weights.spec
    steps, count = torch.steps, INTERVAL_3.recomputed(weights.spec.tokens)
    first, second = frames_of(spec, 2)
    old, new = steps.embed(first), steps.embed(second)
    keys, values, added, mlps = [], [], [], []
    for hidden in (old, new):
        normed = steps.normed(0, hidden)
        keys.append(steps.key(0, normed))
        values.append(steps.value(0, normed))
        added.append(steps.attention(0, normed, keys[-1], values[-1]))
        mlps.append(steps.mlp(0, hidden + added[-1]))
    flat = [key.transpose(1, 0, 2).reshape(spec.tokens, -1) for key in keys]
    likeness = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in zip(*flat, strict=True)
    ]
    chosen = sorted(sorted(range(spec.tokens), key=likeness.__getitem__)[:count])
    value, attention, mlp = values[0].copy(), added[0].copy(), mlps[0].copy()
    value[:, chosen] = values[1][:, chosen]
    attention[chosen] = steps.attention(0, steps.normed(0, new)[chosen], keys[1], value)
    mlp[chosen] = mlps[1][chosen]
    expected = {
        "attention": new + attention + steps.mlp(0, new + attention),
        "mlp": new + added[1] + mlp,
    }
    for half, hidden in expected.items():
        encoder = ReuseEncoder(torch, INTERVAL_3, attention=half == "attention", mlp=half == "mlp")
        encoder.push(first)
        np.testing.assert_allclose(
            encoder.push(second).tokens, torch.project(hidden), rtol=1e-4, atol=1e-5
        )


def test_halves_cost_what_is_counted_by_hand() -> None:
    weights = made_up()  # 9 patches of 4 x 4, C 16, MLP 24, two blocks
    torch, settings = TorchVision(weights), Settings(recompute_ratio=0.25)  # M = 2
    embedding, square, mlp = 9 * 16 * 48, 16 * 16, 2 * 16 * 24
    attention = ReuseEncoder(torch, settings, attention=True, mlp=False).macs(False)
    assert attention == embedding + 2 * (9 * square + 2 * (3 * square + 2 * 9 * 16) + 9 * mlp)
    other = ReuseEncoder(torch, settings, attention=False, mlp=True).macs(False)
    assert other == embedding + 2 * (9 * 4 * square + 9 * 2 * 9 * 16 + 2 * mlp)
    assert AttentionOnly.reuses_attention and not MlpOnly.reuses_attention


# Recomputed at random


def test_all_tokens_recomputed_at_random_are_dense(towers: Towers) -> None:
    frames = streamed(RandomRecompute(recompute_ratio=1.0), towers)
    for got, expected in zip(frames, streamed(METHODS["off"], towers), strict=True):
        np.testing.assert_allclose(got.tokens, expected.tokens, rtol=1e-3, atol=1e-4)


def test_random_recompute_is_the_cacher_told_what_to_recompute(
    towers: Towers, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, spec = RandomRecompute().cacher(), towers.spec
    encoder = RandomRecompute().open(towers)
    drawn: list[NDArray[np.int64]] = []
    draw = encoder._drawn

    def seen() -> NDArray[np.int64]:
        drawn.append(draw())
        return drawn[-1]

    monkeypatch.setattr(encoder, "_drawn", seen)
    cacher = streamed(METHODS["cacher"], towers)
    for index, pixels in enumerate(frames_of(spec, 5)):
        got = encoder.push(pixels)
        assert got.macs == cacher[index].macs
        if settings.is_reference(index):
            frame = towers.torch.reference(pixels)
            assert got.recomputed is None
        else:
            told = drawn[-spec.blocks :]
            assert {len(rows) for rows in told} == {spec.tokens // 4}
            assert len({rows.tobytes() for rows in told}) == spec.blocks
            frame = towers.torch.reuse(pixels, spec.tokens // 4, "layerwise", told)
            np.testing.assert_array_equal(got.recomputed, told[0])
        expected = towers.torch.project(frame.hidden)
        np.testing.assert_allclose(got.tokens, expected, rtol=1e-3, atol=1e-3)
    assert len(drawn) == 3 * spec.blocks


def test_a_class_token_is_always_among_the_random_ones() -> None:
    tower = VisionTower(OracleBackend(*oracle_weights(OtherWeights())), SPEC, "fp32")
    for ratio, count in ((0.01, 1), (0.3, 10)):
        settings = Settings(recompute_ratio=ratio, budget=0)
        encoder = RandomRecomputeEncoder(tower, settings, 0)
        frames = [encoder.push(pixels) for pixels in frames_of(SPEC, 2)]
        assert frames[1].recomputed is not None and len(frames[1].recomputed) == count
        assert frames[1].recomputed[0] == 0
