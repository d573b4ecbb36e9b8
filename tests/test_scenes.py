"""Scenes: the same everywhere, labels that agree with the pixels, questions nobody can guess."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt
import pytest

from stc import scenes
from stc.scenes import store
from stc.scenes.finders import FINDERS
from stc.scenes.stage.backgrounds import TEXTURES
from stc.scenes.stage.bodies import drawn
from stc.scenes.words import LETTERS, QUESTIONS

FRAMES = 5
"""Every how many frames pixels are looked at."""

Counts = npt.NDArray[np.intp]


def right_word(question: scenes.Question) -> str:
    """The answer, in a word where a letter was asked for."""
    if not question.options:
        return question.answer
    return question.options[LETTERS.index(question.answer)]


def drawn_pixels(scene: scenes.Scene, number: int, frame: int) -> npt.NDArray[np.bool_]:
    """Pixels that are other when this thing is left out."""
    whole, without = scene.render(frame), scene.render_without((number,), frame)
    return np.asarray((whole != without).any(-1))


def in_patches(pixels: npt.NDArray[np.bool_]) -> Counts:
    cells = pixels.reshape(scenes.CELLS, scenes.PATCH, scenes.CELLS, scenes.PATCH)
    return np.asarray(cells.sum((1, 3)), np.intp)


def test_a_scene_follows_from_its_split_and_seed() -> None:
    first, again = scenes.make_scene("train", 7), scenes.make_scene("train", 7)
    assert np.array_equal(first.frames(), again.frames())
    asked = [one.questions(np.random.Generator(np.random.PCG64(1)), 12) for one in (first, again)]
    assert asked[0] == asked[1]
    others = (scenes.make_scene("train", 8), scenes.make_scene("validation", 7))
    assert all(not np.array_equal(first.render(0), other.render(0)) for other in others)


def test_the_frozen_test_is_what_it_was() -> None:
    """Whoever changes scenes or questions changes the test: a new hash is a new test."""
    assert scenes.frozen_sha256() == scenes.FROZEN_SHA256


def test_the_shape_of_frames_and_labels() -> None:
    for seed in range(40):
        scene = scenes.make_scene("train", seed)
        count, labels = len(scene.labels.things), scene.labels
        assert 8 <= scene.frame_count <= 24
        assert scene.render(0).shape == (scenes.SIDE, scenes.SIDE, 3)
        assert scene.render(0).dtype == np.uint8
        assert labels.centre.shape == (scene.frame_count, count, 2)
        assert labels.shown.shape == (scene.frame_count, count)
        assert labels.owner.shape == (scene.frame_count, scenes.CELLS, scenes.CELLS)
        dtypes = [str(held.dtype) for held in (labels.centre, labels.shown, labels.owner)]
        assert dtypes == ["float32", "float32", "int8"]
        assert count <= 4
        assert 0 <= labels.shown.min(initial=0) <= labels.shown.max(initial=0) <= 1


@pytest.mark.parametrize("split", store.SPLITS)
def test_labels_agree_with_the_pixels(split: store.Split) -> None:
    looked_at: Counter[str] = Counter()
    for seed in range(24):
        scene = scenes.make_scene(split, seed)
        for number, frame in itertools.product(
            range(len(scene.labels.things)), range(0, scene.frame_count, FRAMES)
        ):
            looked_at[scene.labels.things[number].kind] += 1
            agrees(scene, number, frame)
    assert len(looked_at) >= len(scenes.KINDS) - 1


def agrees(scene: scenes.Scene, number: int, frame: int) -> None:
    labels, where = scene.labels, (scene.split, scene.seed, number, frame)
    changed = drawn_pixels(scene, number, frame)
    picture = drawn(scene.plan.looks[number], scene.plan.camera.zoom[frame])
    # Rims are thin and half clear, so a covered thing shows more of its rim than of itself.
    share = changed.sum() / (picture[..., 3] > 0).sum()
    assert abs(share - labels.shown[frame, number]) < 0.16, where
    if labels.shown[frame, number] == 1:
        rows, columns = np.nonzero(changed)
        middle = [(at.min() + at.max() + 1) / 2 for at in (columns, rows)]
        assert abs(middle - labels.centre[frame, number]).max() <= 2, where
    least, most = (4, 14) if labels.things[number].kind == "dot" else (9, 32)
    counts = in_patches(changed)
    assert (counts[labels.owner[frame] == number] >= least).all(), where
    assert (counts[labels.owner[frame] == -1] <= most).all(), where


def test_the_splits_share_no_picture() -> None:
    for held in (store.people, store.places):
        seen = [{picture.tobytes() for picture in held(split)} for split in store.SPLITS]
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(seen, 2))
    digits = [
        {digit.tobytes() for name in store.digits(split) for digit in name}
        for split in store.SPLITS
    ]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(digits, 2))
    textures = [set(TEXTURES[split]) for split in store.SPLITS]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(textures, 2))


def test_no_region_of_a_test_background_is_in_a_training_one() -> None:
    """Rows of 32 pixels: as good as unique in a photograph, unless they are black."""
    rows = {split: set[bytes]() for split in store.SPLITS}
    for split in store.SPLITS:
        for place in store.places(split):
            for row, left in itertools.product(place, range(place.shape[1] - 32)):
                if row[left : left + 32].max() > 60:
                    rows[split].add(row[left : left + 32].tobytes())
    assert all(rows.values())
    assert all(rows[a].isdisjoint(rows[b]) for a, b in itertools.combinations(rows, 2))


def test_every_kind_and_answer_is_asked_as_often_in_the_frozen_test() -> None:
    words: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    letters: dict[str, Counter[str]] = defaultdict(Counter)
    families: Counter[str] = Counter()
    for _, questions in scenes.frozen_test():
        for question in questions:
            families[question.family] += 1
            words[question.kind, bool(question.options)][right_word(question)] += 1
            if question.options:
                letters[question.kind][question.answer] += 1
    assert sum(families.values()) >= 900
    assert set(families) == {"now", "backward", "alert", "fine"}
    assert min(families.values()) >= 100
    assert {kind for kind, _ in words} == set(QUESTIONS)
    for (kind, _), counts in words.items():
        assert set(counts) == set(QUESTIONS[kind].answers), kind
        assert len(set(counts.values())) == 1, (kind, counts)
    for kind, counts in letters.items():
        assert max(counts.values()) - min(counts.values()) <= 1, (kind, counts)


def test_who_sees_nothing_stays_near_chance() -> None:
    """The best constant answer to each wording, known from training questions."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(400):
        random = np.random.Generator(np.random.PCG64(seed))
        for question in scenes.make_scene("train", seed).questions(random, 12):
            known[stem(question)][right_word(question)] += 1
    right: Counter[str] = Counter()
    chance, total = 0.0, 0
    for _, questions in scenes.frozen_test():
        for question in questions:
            counts = known[stem(question)]
            options = question.options or QUESTIONS[question.kind].answers
            right[question.family] += right_word(question) == max(options, key=counts.__getitem__)
            chance += 1 / len(options)
            total += 1
    assert abs(right.total() - chance) / total < 0.06
    assert right["alert"] / 120 < 0.6


def stem(question: scenes.Question) -> str:
    return question.text.split("?")[0]


def test_yes_is_not_told_by_the_time() -> None:
    """The best "yes from this frame on", or no, is right in three of four at most."""
    asked: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for _, questions in scenes.frozen_test():
        for question in questions:
            if QUESTIONS[question.kind].answers == ("yes", "no"):
                asked[question.kind].append((question.frame, right_word(question) == "yes"))
    assert len(asked) == 8
    for kind, pairs in asked.items():
        best = max(abs(sum((f >= t) == yes for f, yes in pairs) - 20) for t in range(25))
        assert best <= 10, kind


def test_training_asks_all_kinds_and_answers() -> None:
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(300):
        scene = scenes.make_scene("train", seed)
        asked = scene.questions(np.random.Generator(np.random.PCG64(seed)), 14)
        assert len(set(asked)) == len(asked) <= 14
        for question in asked:
            words[question.kind][right_word(question)] += 1
            assert 1 <= question.frame < scene.frame_count
    assert words.keys() == QUESTIONS.keys()
    for kind, counts in words.items():
        assert set(counts) == set(QUESTIONS[kind].answers), kind
        assert max(counts.values()) < 0.75 * counts.total(), (kind, counts)


def test_right_answers_follow_from_the_labels() -> None:
    """Six kinds, worked out again here, over the frozen test."""
    checked: Counter[str] = Counter()
    for scene, questions in scenes.frozen_test():
        for question in questions:
            expected = derived(scene.labels, question)
            if expected is not None:
                checked[question.kind] += 1
                assert right_word(question) == expected, (scene.seed, question)
    assert len(checked) == 6


def derived(labels: scenes.Labels, question: scenes.Question) -> str | None:
    until = labels.shown[: question.frame + 1] >= 0.6
    named = [n for n, thing in enumerate(labels.things) if f" {thing.kind}" in stem(question)]
    if question.kind == "colour":
        return labels.things[named[0]].colour
    if question.kind in ("where", "person where", "dot where"):
        x = labels.centre[question.frame, named[0], 0]
        return ("left", "middle", "right")[int(x // (scenes.SIDE / 3))]
    if question.kind == "how many":
        kinds = [labels.things[n].kind for n in np.flatnonzero(until[-1])]
        return scenes.DIGITS[sum(kind in scenes.SHAPES for kind in kinds)]
    if question.kind == "anything":
        return "yes" if until.any() else "no"
    return None


def test_words_are_those_of_all_questions() -> None:
    known, every = set(scenes.words()), set(scenes.stems())
    assert len(known) < 100
    for _, questions in scenes.frozen_test():
        for question in questions:
            assert stem(question) + "?" in every
            split = question.text.replace("?", " ?").replace(".", " .").split()
            assert known.issuperset(split)
            assert question.answer in known
            if question.options:
                assert len(set(question.options)) == len(question.options)


def test_a_silent_scene_is_asked_about_too() -> None:
    silent = next(
        scene
        for scene in (scenes.make_scene("train", seed) for seed in range(100))
        if not scene.labels.things
    )
    asked = silent.questions(np.random.Generator(np.random.PCG64(0)), 12)
    assert {question.family for question in asked} >= {"backward", "alert"}
    assert {right_word(question) for question in asked} <= {"no", "zero"}


def test_each_kind_has_a_finder() -> None:
    assert FINDERS.keys() == QUESTIONS.keys()
