"""What the demo model is trained on: targets are right, and batches compute what the model computes
when it is asked."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.demo.tokenizer import MODEL, DemoTokenizer, demo_tokenizer
from stc.export.demo.training.codebook import NAMES, NORM, Codebook, pooled, shares
from stc.export.demo.training.draws import windows
from stc.export.demo.training.draws.facts import (
    FRAME_HEADS,
    HEADS,
    IGNORED,
    Facts,
    Targets,
    firsts,
    option,
)
from stc.export.demo.training.draws.streams import KEEPS, Stream, rank_of, shown_of
from stc.export.demo.training.muon import Muon, orthogonal
from stc.export.demo.training.sequences import batch, kept_of
from stc.export.demo.training.stages import (
    LATE_BLOCK,
    hidden_states,
    looked_for,
    pixel_values,
    seen,
)
from stc.export.demo.training.train import Learner
from stc.runtime.vision.preprocess import Preprocessor
from stc.scenes.labels import Labels
from stc.scenes.scene import make_scene
from stc.scenes.words import CELLS, COLOURS, DIGITS, KINDS, Question, Thing


@pytest.fixture(scope="module")
def tokenizer() -> DemoTokenizer:
    return demo_tokenizer()


@pytest.fixture(scope="module")
def learner(tokenizer: DemoTokenizer) -> Learner:
    """Untrained."""
    return Learner(tokenizer, seed=0)


def labels() -> Labels:
    """Four frames with a red circle that moves right, a blue square that leaves after the third, a
    red star that is mostly hidden, and a seven that comes last and stands."""
    things = (
        Thing("circle", "red"),
        Thing("square", "blue"),
        Thing("star", "red"),
        Thing("digit", None, 7),
    )
    centre = np.zeros((4, 4, 2), np.float32)
    centre[:, 0] = [(8, 40), (12, 40), (16, 41), (20, 41)]
    centre[:, 1], centre[:, 2], centre[:, 3] = (60, 20), (90, 90), (100, 60)
    shown = np.array([[1, 0, 0.5, 0], [1, 1, 0.5, 0], [0.7, 1, 0.5, 0], [1, 0.2, 0.5, 1]])
    owner = np.full((4, CELLS, CELLS), -1, np.int8)
    owner[:, 4:6, 1:3] = 0
    owner[3, 7, 12] = 3
    return Labels(things, centre, shown.astype(np.float32), owner)


# What the tower says.


def test_what_a_token_says_can_be_read_back() -> None:
    book = Codebook(128)
    square = book.codes @ book.codes.T
    torch.testing.assert_close(square, NORM**2 * torch.eye(len(NAMES)), rtol=0, atol=1e-4)
    said = torch.rand(5, len(NAMES), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(said @ book.codes @ book.transposed, said)
    assert torch.equal(book.of("star"), book.codes[NAMES.index("star")])


def test_shares_say_what_the_labels_say() -> None:
    said = shares(labels())
    assert said.shape == (4, CELLS, CELLS, len(NAMES))

    def at(frame: int, row: int, column: int) -> dict[str, float]:
        values = said[frame, row, column]
        return {NAMES[n]: round(float(values[n]), 4) for n in np.flatnonzero(values)}

    # Places are 14 bins of 8 px, whose centres are those of patches: 4, 12, 20 ...
    circle = {"red": 1.0, "circle": 1.0, "occupied": 1.0}
    assert at(0, 4, 1) == circle | {"x0": 0.5, "x1": 0.5, "y4": 0.5, "y5": 0.5}
    assert at(3, 5, 2) == circle | {"x2": 1.0, "y4": 0.375, "y5": 0.625}
    seven = {"digit": 1.0, "seven": 1.0, "occupied": 1.0}
    assert at(3, 7, 12) == seven | {"x12": 1.0, "y7": 1.0}
    # Background says where it lies itself.
    assert at(3, 0, 2) == {"background": 1.0, "x2": 1.0, "y0": 1.0}
    assert at(2, 7, 12) == {"background": 1.0, "x12": 1.0, "y7": 1.0}
    some = shares(labels(), np.array([3, 1]))
    assert np.array_equal(some, said[[3, 1]])


def test_shares_are_pooled_as_the_model_pools_tokens(learner: Learner) -> None:
    said = shares(make_scene("train", 3).labels)
    flat = torch.from_numpy(said).flatten(1, 2)
    with torch.no_grad():
        expected = learner.model.model.apply_pooling(flat)
    torch.testing.assert_close(torch.from_numpy(pooled(said)), expected)


def test_training_sees_what_the_model_sees(learner: Learner) -> None:
    """Pixel values as the product makes them; pooled features as transformers computes them."""
    scene = make_scene("train", 5)
    frames = scene.frames()
    pixels = pixel_values(frames)
    preprocess = Preprocessor(open_checkpoint(str(MODEL)).spec)
    np.testing.assert_allclose(pixels[0], preprocess(frames[0]), atol=1e-6)
    with torch.no_grad():
        *expected, _ = learner.model.model.get_video_features(pixels[None]).pooler_output[0]
        got = seen(learner.model, frames)
    # The last is the newline behind a video, which no frame holds.
    torch.testing.assert_close(got.flatten(0, 1), torch.stack(expected))


def test_a_form_is_what_is_covered_round_a_centre() -> None:
    covered = np.zeros((112, 112), bool)
    covered[30:50, 40:80] = True  # the upper half of 40 px round (60, 50)
    covered[0:8, 0:4] = True
    form, nobody = windows.forms_of(covered, np.array([[60, 50]], np.float32))
    assert np.array_equal(form.reshape(8, 8), np.repeat([[1.0], [0.0]], 4, 0).repeat(8, 1))
    assert not nobody.any()
    cells = windows.cells_of(covered, CELLS)
    assert np.array_equal(cells[0].reshape(4, 4), [[1, 1, 0, 0]] * 4)
    assert cells.sum() * 4 == covered.sum()


# What questions are about.


def told(targets: Targets) -> dict[str, int]:
    return {
        name: value for name, value in zip(HEADS, targets.tolist(), strict=True) if value != IGNORED
    }


def test_facts_are_those_of_the_labels() -> None:
    facts = Facts(labels(), 3)
    circle = {"colour": list(COLOURS).index("red"), "kind": KINDS.index("circle"), "seen": 1}
    # Two frames ago it was 4 px to the left.
    circle |= {"visible": 1, "third": 0, "direction": 1, "rank": 0}
    assert told(facts.about("circle")) == told(facts.about("red")) == circle
    square = {"colour": list(COLOURS).index("blue"), "kind": KINDS.index("square"), "seen": 1}
    assert told(facts.about("blue")) == square | {"visible": 0, "rank": 1}
    seven = {"kind": KINDS.index("digit"), "digit": DIGITS.index("seven"), "seen": 1}
    seven |= {"visible": 1, "third": 2, "rank": 2}
    assert told(facts.about("digit")) == seven
    assert told(facts.about("star")) == told(facts.about("green")) == {"seen": 0}
    assert told(facts.counts()) == {"now": 1, "ever": 2, "gone": 0}


def test_facts_know_nothing_of_later_frames() -> None:
    first = Facts(labels(), 0)
    assert told(first.about("blue")) == told(first.about("digit")) == {"seen": 0}
    assert "direction" not in told(first.about("red"))  # there was nothing before
    assert np.isnan(first.shown()[2]).all()
    assert told(first.counts()) == {"now": 1, "ever": 1, "gone": 0}
    # Two red things: none is meant more than the other.
    both = replace(labels(), shown=np.ones((4, 4), np.float32))
    assert told(Facts(both, 3).about("red")) == {"seen": 1}


def test_what_left_is_gone_by_the_side_that_it_left_by() -> None:
    gone = labels()
    gone.shown[3, 1], gone.centre[3, 1] = 0.0, (-4, 20)
    facts = Facts(gone, 3)
    square = {"colour": list(COLOURS).index("blue"), "kind": KINDS.index("square"), "seen": 1}
    assert told(facts.about("square")) == square | {"visible": 0, "rank": 1, "exit": 0}
    assert told(facts.counts()) == {"now": 1, "ever": 2, "gone": 1}
    gone.centre[3, 1] = (112, 20)
    assert told(Facts(gone, 3).about("square"))["exit"] == 1


def test_a_frame_s_tokens_are_told_what_no_token_shows() -> None:
    """Pooled tokens of 2 x 2 patches: the circle's four patches are spread over four tokens."""
    things, ways, moved = Facts(labels(), 3).shown()
    circle = np.zeros((7, 7), bool)
    circle[2, 0:2] = True
    digit = np.zeros((7, 7), bool)
    digit[3, 6] = True
    assert np.array_equal(things.reshape(7, 7) == 0, circle)
    assert np.array_equal(things.reshape(7, 7) == 3, digit)
    assert (things.reshape(7, 7)[~circle & ~digit] == -1).all()
    assert np.array_equal(ways.reshape(7, 7) == 1, circle)  # the digit has just come
    assert (ways.reshape(7, 7)[~circle] == IGNORED).all()
    assert np.array_equal(~np.isnan(moved).any(1), circle.ravel())
    assert (moved[circle.ravel()] == np.array([8, 1], np.float32) / 16).all()


def test_the_first_token_of_a_thing_is_told_so_in_its_frame_and_ever() -> None:
    things = np.array([[-1, 4, 4, -1], [0, 4, 4, 0], [-1, -1, -1, -1], [4, 0, 4, 0]])
    no = IGNORED
    expected = [[no, 2, 0, no], [2, 1, 0, 0], [no, no, no, no], [1, 1, 0, 0]]
    assert firsts(things).tolist() == expected


def test_a_question_has_its_targets_at_its_words(
    learner: Learner, tokenizer: DemoTokenizer
) -> None:
    text = "What colour is the circle? A. blue B. red"
    asked = learner.asker.asked(
        labels(), Question("now", "colour", text, "B", ("blue", "red"), frame=3)
    )
    pieces = [tokenizer.tokenizer.decode([one], skip_special_tokens=False) for one in asked.ids]
    facts = Facts(labels(), 3)
    at = {
        pieces[place].strip(): told(targets)
        for place, targets in enumerate(asked.targets)
        if told(targets)
    }
    assert at.pop("circle") == told(facts.about("circle"))
    assert at.pop("red") == told(facts.about("red")) | told(option("B", right=True))
    assert at.pop("blue") == told(facts.about("blue")) | told(option("A", right=False))
    [(_, counts)] = at.items()
    assert counts == told(facts.counts())
    # The last two text tokens are followed by the answer and the end.
    [answer], [word] = tokenizer.encode("B"), tokenizer.encode("red")
    assert asked.ids[-1] == answer
    assert asked.labels.tolist() == [IGNORED] * (len(asked.ids) - 2) + [answer, tokenizer.stop]
    assert asked.words.tolist() == [IGNORED] * (len(asked.ids) - 2) + [word, IGNORED]


def test_a_question_is_put_as_the_template_puts_it(learner: Learner) -> None:
    template = AutoTokenizer.from_pretrained(MODEL)
    question = Question("now", "moving", "Is anything moving?", "yes", (), frame=2)
    parts = [{"type": "video"}, {"type": "text", "text": question.text}]
    expected = template.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, return_dict=False
    )
    before, ids = learner.asker.before, learner.asker.asked(labels(), question).ids[:-1]
    video = template.convert_tokens_to_ids("<video>")
    assert [*before, video, *ids] == expected


# Batches.


def stream(learner: Learner, seed: int, frames: int, keep: int) -> tuple[Tensor, Stream]:
    """Features that are noise, and a stream of questions at several frames."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((frames, 49, 128), dtype=np.float32)
    texts = (
        "Is anything moving?",
        "Was there a star?",
        "Where is the circle? A. red B. blue",
    )
    asked = [
        learner.asker.asked(labels(), Question("now", "", text, "A", ("red", "blue"), frame))
        for text, frame in zip(texts[: frames - 2], (3, 1, 3), strict=False)
    ]
    of = [*range(4), 3][:frames]
    things, ways, moved = shown_of(labels())
    seen_of = things[of], ways[of], moved[of]
    return torch.from_numpy(noise), Stream(noise, keep, None, asked, *seen_of)


def test_questions_of_a_batch_are_answered_as_if_each_were_asked_alone(learner: Learner) -> None:
    """By transformers, the frames up to the question's before it."""
    streams = [stream(learner, 0, frames=5, keep=10), stream(learner, 1, frames=4, keep=10)]
    assert [len(stream.asked) for _, stream in streams] == [3, 2]
    model, embed = learner.model, learner.model.get_input_embeddings()
    one = batch(learner.asker.before, streams)
    compared = 0
    with torch.no_grad():
        joined = torch.cat([embed(one.before), one.video, embed(one.ids)], 1)
        last = model.model.language_model.norm(hidden_states(model, joined, one)[-1])
        got = model.lm_head(last[:, -one.ids.shape[1] :])
        for row, (features, of) in enumerate(streams):
            kept = kept_of(features, of.keep, None)
            first = firsts(np.take_along_axis(of.things, kept.numpy(), 1))
            shown = np.take_along_axis(of.ways, kept.numpy(), 1), first
            assert list(FRAME_HEADS) == ["direction", "first"]
            for number, targets in enumerate(shown):
                got_targets = one.shown[row, : kept.numel(), number]
                assert np.array_equal(got_targets, targets.ravel())
            assert (one.shown[row, kept.numel() :] == IGNORED).all()
            at = 0
            for question in of.asked:
                video = [features[n, kept[n]] for n in range(question.frame + 1)]
                ids = torch.from_numpy(question.ids)
                alone = torch.cat([embed(one.before[0]), *video, embed(ids)])
                expected = model(inputs_embeds=alone[None]).logits[0, -len(ids) :]
                part = slice(at, at + len(ids))
                torch.testing.assert_close(got[row, part], expected, rtol=1e-4, atol=1e-4)
                assert torch.equal(one.ids[row, part], ids)
                assert np.array_equal(one.labels[row, part], question.labels)
                assert np.array_equal(one.words[row, part], question.words)
                assert np.array_equal(one.targets[row, part], question.targets)
                at, compared = part.stop, compared + 1
            for padding in (one.labels, one.words, one.targets):
                assert (padding[row, at:] == IGNORED).all()
    assert compared == 5


def test_the_right_option_is_looked_for_as_the_block_looks(
    learner: Learner, tokenizer: DemoTokenizer
) -> None:
    """By the attention that transformers computes, of the first head."""
    model, embed = learner.model, learner.model.get_input_embeddings()
    streams = [stream(learner, 0, frames=5, keep=10), stream(learner, 1, frames=5, keep=10)]
    one = batch(learner.asker.before, streams)
    with torch.no_grad():
        joined = torch.cat([embed(one.before), one.video, embed(one.ids)], 1)
        hidden = hidden_states(model, joined, one)[LATE_BLOCK]
        got = looked_for(model, hidden, one)
        layer = copy.deepcopy(model.model.language_model.layers[LATE_BLOCK])
        layer.self_attn.config = copy.deepcopy(layer.self_attn.config)
        layer.self_attn.config._attn_implementation = "eager"
        _, shares = layer.self_attn(
            layer.input_layernorm(hidden),
            position_embeddings=model.model.language_model.rotary_emb(hidden, one.positions),
            attention_mask=torch.zeros(one.allowed.shape).masked_fill(~one.allowed, -1e30),
        )
    row, end, right = one.choices.T
    torch.testing.assert_close(got, -shares[row, 0, end, right].log().mean())
    # "Where is the circle? A. red B. blue": the first is right, and said where the question ends.
    start = joined.shape[1] - one.ids.shape[1]
    [red] = tokenizer.encode(" red")
    assert one.ids[row, right - start].tolist() == [red] * 2
    assert (one.words[row, end - start] != IGNORED).all()
    none = [stream(learner, 0, frames=4, keep=10)]
    assert not len(batch(learner.asker.before, none).choices)
    assert looked_for(model, hidden, batch(learner.asker.before, none)) == 0


@pytest.mark.parametrize("keep", KEEPS)
def test_tokens_are_kept_in_their_order(keep: int) -> None:
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((6, 49, 16), dtype=np.float32))
    for _ in range(8):  # by likeness, and at random
        kept = kept_of(features, keep, rank_of(6, keep, random))
        assert kept.shape == (6, keep)
        assert (kept.diff(dim=1) > 0).all()
        assert kept.min() >= 0
        assert kept.max() < 49


def test_the_tokens_that_are_alike_go_first() -> None:
    features = torch.ones(3, 49, 8)
    features[:, 20:30] = -1.0
    assert kept_of(features, 10, None).tolist() == [list(range(20, 30))] * 3


# The optimizer.


@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 24, 64), (2, 64, 24)])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    got = orthogonal(matrices)
    near = values > values.amax(1, keepdim=True) / 30
    sizes = torch.einsum("nik,nij,nkj->nk", left, got, right)[near]
    assert near.float().mean() > 0.9
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    # The directions are those of the matrix.
    whole = left @ torch.diag_embed(torch.einsum("nik,nij,nkj->nk", left, got, right)) @ right
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-4)


def test_muon_steps_by_its_rate_whatever_the_gradient_s_size() -> None:
    gradient = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    moved = []
    for size in (1e-3, 1e3):
        matrix = torch.nn.Parameter(torch.zeros(24, 24))
        matrix.grad = size * gradient
        Muon([matrix], lr=0.1).step()
        moved.append(matrix.detach())
    torch.testing.assert_close(*moved)
    assert (moved[0] * gradient).sum() < 0
    assert 0.05 < torch.linalg.matrix_norm(moved[0], 2) < 0.13
