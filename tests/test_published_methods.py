"""Methods of other papers: what each keeps or merges, against the same written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import from_numpy

from stc.errors import SettingsError
from stc.export.models.reference import TorchVision
from stc.export.towers.part import VisionWeights
from stc.manifest import VisionSpec
from stc.method.family import frame_program, macs
from stc.runtime.evaluate.methods import methods_of
from stc.runtime.evaluate.methods.published.dart import Dart, unlike_pivots
from stc.runtime.evaluate.methods.published.dycoke import DyCoke
from stc.runtime.evaluate.methods.published.evs import Evs, EvsThreshold
from stc.runtime.evaluate.methods.published.tome import (
    ToMe,
    ToMeEncoder,
    matched,
    merged_macs,
    merged_once,
    spread,
)
from stc.runtime.evaluate.methods.published.vidcom2 import (
    EVENED_OUT,
    StreamBudgets,
    VidCom2,
    VideoSoFar,
    frame_budgets,
)
from stc.runtime.evaluate.methods.published.visionzip import VisionZipEncoder, zipped
from stc.settings import PRESETS
from tests.oracle.layers import ACTIVATIONS, BlockWeights, TowerWeights
from tests.oracle.vision import embed, pooling_matrix, softmax, split_heads
from tests.other_tower import SPEC, OtherWeights, oracle_weights
from tests.vision_cases import made_up, made_up_spec

Array = NDArray[np.float32]
OTHER = OtherWeights()
WEIGHTS: list[VisionWeights] = [made_up(blocks=3, image_size=20), OTHER]
FULL = made_up_spec(image_size=378, patch_size=14, width=1152, heads=16, mlp_width=4304, blocks=26)
"""SigLIP-so400m with its last block gone."""


def pixels_of(spec: VisionSpec, seed: int = 0) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, spec.pixel_shape).astype(np.float32)


def tokens_of(count: int, width: int = 12, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


# ToMe


def mlp(block: BlockWeights, hidden: Array) -> Array:
    activated: Array = block.fc2(ACTIVATIONS[block.activation](block.fc1(block.norm2(hidden))))
    return activated


def plain_tome(weights: TowerWeights, pixels: Array, merges: list[int], prefix: int) -> Array:
    """Groups of patches, each of them attended to as often as it has patches."""
    rows = list(embed(weights.embed, pixels))
    groups = [[token] for token in range(len(rows))]
    for block, count in zip(weights.blocks, merges, strict=True):
        hidden = np.stack(rows)
        normed = block.norm1(hidden)
        query, key, value = (
            split_heads(affine(normed), block.heads)
            for affine in (block.query, block.key, block.value)
        )
        often = [row for row, group in enumerate(groups) for _ in group]
        shares = softmax(query @ key[:, often].transpose(0, 2, 1) / np.sqrt(key.shape[2]))
        attended = (shares @ value[:, often]).transpose(1, 0, 2).reshape(hidden.shape)
        hidden = hidden + block.out(attended)
        metric = key.mean(axis=0)
        if not count:
            rows = list(hidden + mlp(block, hidden))
            continue
        first, second = range(prefix, len(rows), 2), range(prefix + 1, len(rows), 2)
        pairs = [max((cosine(metric[a], metric[b]), a, b) for b in second) for a in first]
        into = {a: b for _, a, b in sorted(pairs, reverse=True)[:count]}
        left = [*range(prefix), *(a for a in first if a not in into), *second]
        members = [[row, *(a for a, b in into.items() if b == row)] for row in left]
        rows = [
            np.average(hidden[group], axis=0, weights=[len(groups[row]) for row in group])
            for group in members
        ]
        groups = [[token for row in group for token in groups[row]] for group in members]
        merged = np.stack(rows).astype(np.float32)
        rows = list(merged + mlp(block, merged))
    whole = np.empty((sum(map(len, groups)), rows[0].size), np.float32)
    for row, group in zip(rows, groups, strict=True):
        whole[group] = row
    return whole


@pytest.mark.parametrize("merges", [[0, 0, 0], [5, 0, 3], [17, 9, 4]])
def test_tome_merges_in_every_block_as_written_out(merges: list[int]) -> None:
    encoder = ToMeEncoder(TorchVision(OTHER), merges)
    pixels = pixels_of(SPEC)
    expected = plain_tome(oracle_weights(OTHER)[0], pixels, merges, SPEC.grid.prefix_tokens)
    got = encoder.hidden(pixels)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert len(np.unique(got, axis=0)) == SPEC.tokens - sum(merges)


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda one: one.name)
def test_tome_that_merges_nothing_is_dense(weights: VisionWeights) -> None:
    torch, pixels = TorchVision(weights), pixels_of(weights.spec)
    encoded = ToMeEncoder(torch, [0, 0, 0]).push(pixels)
    dense = torch.dense(pixels)
    np.testing.assert_allclose(encoded.tokens, torch.project(dense), rtol=1e-5, atol=1e-5)
    program = frame_program(weights.spec, "fp32", PRESETS["off"], "reference")
    assert encoded.macs == macs(weights.spec, program)


@pytest.mark.parametrize("count", [2, 9, 10])
def test_every_token_is_in_one_merged_token(count: int) -> None:
    for prefix in (0, 1) if count > 2 else (0,):
        for merges in range((count - prefix) // 2 + 1):
            merge = matched(tokens_of(count), merges, prefix)
            sizes = merge.sums(np.ones(count, np.float32))
            assert len(sizes) == count - merges and sizes.sum() == count
            np.testing.assert_array_equal(sizes[:prefix], 1)
            np.testing.assert_array_equal(merge.where[merge.stays], np.arange(len(sizes)))


def test_merging_costs_what_is_counted_by_hand() -> None:
    spec = made_up_spec()  # 9 patches of 4 x 4, C 16, 2 heads, MLP 24, two blocks
    embedding, square, mlp = 9 * 16 * 48, 16 * 16, 2 * 16 * 24
    dense = embedding + 2 * (9 * 4 * square + 2 * 9 * 9 * 16 + 9 * mlp)
    assert merged_macs(spec, [0, 0]) == dense
    first = 9 * 4 * square + 2 * 9 * 9 * 16 + 5 * 4 * 8 + 7 * mlp
    second = 7 * 4 * square + 2 * 7 * 7 * 16 + 4 * 3 * 8 + 6 * mlp
    assert merged_macs(spec, [2, 1]) == embedding + first + second


def test_tome_costs_what_the_cacher_does() -> None:
    told = ToMe().settings(FULL)
    every, some, wide = 729, 182, 2 * 1152 * 4304
    dense = every * (4 * 1152**2 + wide + 2 * 729 * 1152)
    reuse = every * 1152**2 + some * (3 * 1152**2 + wide + 2 * 729 * 1152)
    assert told["tower_share"] == pytest.approx((dense + 3 * reuse) / (4 * dense), abs=1e-3)
    merges = ToMe().merges(FULL)
    assert sum(merges) == told["merged_tokens"] == 538  # 191 of 729 are left
    assert merges == sorted(merges, reverse=True) and merges[-1] == 0
    alike = ToMe(schedule="constant").merges(FULL)
    assert alike == [28] * 25 + [14]  # 15 of 729 are left
    dense = merged_macs(FULL, [0] * 26)
    for share in (1.0, 0.7):
        total = sum(ToMe(cost=str(share)).merges(FULL))
        gaps = {
            other: abs(merged_macs(FULL, spread(FULL, other, "decreasing")) / dense - share)
            for other in range(max(0, total - 1), total + 2)
        }
        assert min(gaps, key=gaps.__getitem__) == total


def test_a_block_merges_half_of_its_tokens_at_most() -> None:
    assert spread(made_up_spec(), 100, "constant") == [4, 2]  # half of 9, half of 5
    assert spread(made_up_spec(blocks=4), 6, "decreasing") == [3, 2, 1, 0]
    assert spread(made_up_spec(blocks=1), 2, "decreasing") == [2]


def test_output_tokens_merge_once() -> None:
    tokens = tokens_of(12)
    tokens[3] = 2 * tokens[8] + 0.01  # 8 of A goes to 3 of B
    merged, kept = merged_once(tokens, 1)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11]
    np.testing.assert_allclose(merged[3], (tokens[3] + tokens[8]) / 2, rtol=1e-6)
    others = np.delete(np.arange(12), [3, 8])
    np.testing.assert_array_equal(np.delete(merged, 3, axis=0), tokens[others])


# VisionZip


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda one: one.name)
def test_attention_received_and_pooled(weights: VisionWeights) -> None:
    torch, spec = TorchVision(weights), weights.spec
    steps, tower = torch.steps, weights.tower.reference(weights)
    hidden = steps.embed(pixels_of(spec))
    normed = steps.normed(1, hidden)
    key = steps.key(1, normed)
    received = steps.received(1, normed, key)
    query = tower.query(tower.layers[1], from_numpy(normed))
    shares = softmax(query.numpy() @ key.transpose(0, 2, 1) / np.sqrt(spec.head_width))
    np.testing.assert_allclose(received, shares.mean(axis=(0, 1)), rtol=1e-4)
    assert received.sum() == pytest.approx(1, abs=1e-5)
    expected = pooling_matrix(spec.grid) @ hidden
    np.testing.assert_allclose(torch.pool(hidden), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 13, 20])
def test_visionzip_keeps_and_averages_as_written_out(count: int) -> None:
    tokens, keys = tokens_of(20), tokens_of(20, 6, seed=1)
    attention = np.random.default_rng(2).uniform(size=20).astype(np.float32)
    dominant = max(1, round(count * 54 / 64))
    ranked = sorted(range(20), key=lambda token: -attention[token])
    expected = {token: tokens[token] for token in ranked[:dominant]}
    rest = sorted(ranked[dominant:])
    if contextual := count - dominant:
        step = len(rest) // contextual
        targets = [rest[step * number] for number in range(contextual)]
        gets: dict[int, list[Array]] = {target: [] for target in targets}
        for token in rest:
            if token not in targets:
                gets[max(targets, key=lambda one: cosine(keys[token], keys[one]))].append(
                    tokens[token]
                )
        for target, given in gets.items():
            expected[target] = tokens[target] + (np.mean(given, axis=0) if given else 0)
    got, kept = zipped(tokens, attention, keys, count)
    assert kept.tolist() == sorted(expected) and len(kept) == count
    np.testing.assert_allclose(got, np.stack([expected[int(place)] for place in kept]), rtol=1e-5)


def test_visionzip_sees_a_dense_tower() -> None:
    torch, pixels = TorchVision(OTHER), pixels_of(SPEC)
    encoded = VisionZipEncoder(torch, 5).push(pixels)
    assert encoded.whole is not None and encoded.tokens.shape == (5, SPEC.language_width)
    dense = torch.project(torch.dense(pixels))
    np.testing.assert_allclose(encoded.whole, dense, rtol=1e-4, atol=1e-5)
    assert encoded.macs == merged_macs(SPEC, [0] * SPEC.blocks)


# VidCom2


def test_vidcom2_scores_a_clip_as_written_out() -> None:
    """Of two frames: the half of the channels that vary least varies least in either."""
    frames = [tokens_of(9, seed=seed) * np.repeat([1, 5], 6).astype(np.float32) for seed in (1, 2)]
    video = VideoSoFar()
    video.densities(frames[0])
    to_video, to_frame = video.densities(frames[1])
    unit = [
        [token[:6] / np.linalg.norm(token[:6]) for token in frame.astype(float)] for frame in frames
    ]
    centres = np.mean(unit[0] + unit[1], axis=0), np.mean(unit[1], axis=0)
    for got, centre in zip((to_video, to_frame), centres, strict=True):
        expected = [
            sum(np.exp(-np.sum((token - centre) ** 2) / (2 * 2.0**power)) for power in range(-3, 2))
            for token in unit[1]
        ]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_vidcom2_keeps_the_tokens_least_like_the_video_and_the_frame() -> None:
    chooser, frame = VidCom2(keep=2 / 9).choosing(made_up_spec(image_size=20)), tokens_of(9)
    frame[:] = frame[0] + 0.01 * frame
    frame[[2, 7]] *= -1
    assert chooser(frame).tolist() == [2, 7]


def test_vidcom2_budgets_of_a_clip_sum_to_its_budget() -> None:
    uniqueness = np.random.default_rng(0).normal(-5, 0.02, 16)
    budgets = frame_budgets(uniqueness, 49.0)
    assert budgets.sum() == pytest.approx(16 * 49)
    assert budgets.argmax() == uniqueness.argmax() and budgets.max() > 1.2 * 49


def test_vidcom2_budgets_of_a_stream_are_the_clips_so_far_and_even_out() -> None:
    uniqueness = np.random.default_rng(0).normal(-5, 0.02, 300)
    budgets, taken = StreamBudgets(49.0, 196), 0
    for seen, one in enumerate(uniqueness, 1):
        owed = taken - 49 * (seen - 1)
        wanted = frame_budgets(uniqueness[:seen], 49.0)[-1] - owed / EVENED_OUT
        got = budgets.next(one)
        assert abs(got - wanted) <= 0.5 + 1e-6
        taken += got
        assert abs(taken - 49 * seen) <= EVENED_OUT * 49
    assert taken == pytest.approx(49 * 300, rel=0.01)
    rising = StreamBudgets(49.0, 196)
    assert sum(rising.next(float(one)) for one in range(300)) == pytest.approx(49 * 300, rel=0.02)


# DyCoke, DART, EVS


def test_dycoke_keeps_all_then_what_differs_from_its_partner() -> None:
    spec = made_up_spec(image_size=40)
    assert spec.pooled == 25
    chooser, frames = DyCoke().choosing(spec), [tokens_of(25, seed=seed) for seed in range(8)]
    kept = [chooser(frame) for frame in frames]
    assert [len(places) for places in kept] == [25, 7, 7, 7] * 2  # int(0.3 x 25)
    for index, partner in ((1, 0), (2, 0), (3, 2), (5, 4), (6, 4), (7, 6)):
        ranked = sorted(range(25), key=lambda one: cosine(frames[index][one], frames[partner][one]))
        assert kept[index].tolist() == sorted(ranked[:7])


@pytest.mark.parametrize(("count", "pivots"), [(5, 2), (7, 3), (3, 3), (20, 4)])
def test_dart_keeps_what_is_least_like_its_pivots(count: int, pivots: int) -> None:
    tokens = tokens_of(20)
    left = sorted(range(20), key=lambda one: -np.abs(tokens[one]).sum())
    chosen, left = left[:pivots], left[pivots:]
    expected = list(chosen)
    for rank, pivot in enumerate(chosen):
        each = (count - pivots) // pivots + (rank < (count - pivots) % pivots)
        left.sort(key=lambda one: cosine(tokens[one], tokens[pivot]))
        expected, left = expected + left[:each], left[each:]
    kept = unlike_pivots(tokens, count, pivots)
    assert kept.tolist() == sorted(expected) and len(kept) == count


def test_dart_has_no_more_pivots_than_it_keeps() -> None:
    spec = made_up_spec(image_size=20)
    assert len(Dart(keep=0.3).choosing(spec)(tokens_of(9))) == 2


def test_evs_keeps_nothing_of_a_still_scene_but_its_first_frame() -> None:
    spec, frame = made_up_spec(image_size=20), tokens_of(9)
    for method in (Evs(keep=1.0), Evs(), EvsThreshold(threshold=0.0)):
        chooser = method.choosing(spec)
        assert [len(chooser(frame)) for _ in range(4)] == [9, 0, 0, 0]


def test_evs_keeps_what_changed() -> None:
    first, spec = tokens_of(9), made_up_spec(image_size=20)
    second = first.copy()
    second[4] *= -1
    second[7] += 0.2 * tokens_of(9, seed=1)[7]
    for method, expected in ((EvsThreshold(threshold=0.5), [4]), (EvsThreshold(), [4])):
        chooser = method.choosing(spec)
        chooser(first)
        assert chooser(second).tolist() == expected
    chooser = Evs(keep=2 / 9).choosing(spec)
    chooser(first)
    assert chooser(second).tolist() == [4, 7]
    assert chooser(first).tolist() == [4, 7]


def test_evs_keeps_its_share_of_the_last_frames() -> None:
    random = np.random.default_rng(0)
    chooser = Evs(keep=0.25, window=8).choosing(made_up_spec())
    chooser(random.normal(size=(49, 12)))
    kept = [len(chooser(random.normal(size=(49, 12)))) for _ in range(60)]
    assert len(set(kept)) > 1
    assert np.mean(kept) == pytest.approx(0.25 * 49, rel=0.1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("dart:keep=0", "--methods dart:keep: got 0.0, expected 0 < keep <= 1"),
        ("dart:pivots=0", "--methods dart:pivots: got 0, expected at least 1"),
        ("evs:window=0", "--methods evs:window: got 0, expected at least 1"),
        ("evs-threshold:threshold=3", "--methods evs-threshold:threshold: got 3.0, expected 0 to"),
        ("tome:cost=half", "--methods tome:cost: got 'half', expected a share or one of cacher"),
        ("tome:schedule=x", "--methods tome:schedule: got 'x', expected constant or decreasing"),
        ("tome:cost=2", "--methods tome:cost: got 2.0, expected 0 < cost <= 1"),
        ("tome-output:merge=0.5", "--methods tome-output:merge: got 0.5, expected 0 < merge <= "),
        ("cacher+dart:ratio=1", "--methods dart: got setting 'ratio', expected keep or pivots"),
        ("cacher+dart:recompute_ratio=2", "--recompute-ratio: got 2.0, expected 0 < R <= 1"),
        ("copy-last:reference_interval=0", "--methods copy-last:reference_interval: got 0"),
        ("random-keep:seed=-1", "--methods random-keep:seed: got -1, expected at least 0"),
    ],
)
def test_a_mistake_is_one_line(words: str, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        methods_of(words)
    assert str(caught.value).startswith(line)


def test_what_no_merging_saves_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        ToMe(cost="0.01").settings(FULL)
    assert str(caught.value).startswith("--methods tome:cost: a share of 0.010, expected at least")
