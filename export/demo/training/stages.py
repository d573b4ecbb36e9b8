"""The stages of training: what a step of each computes.

The tower learns to say what is in each patch while the language model learns, from features made
of labels, to answer; then the language model goes on with the tower's own features.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from stc.export.demo.training.codebook import (
    COLOUR,
    DIGIT,
    KIND,
    NAMES,
    NORM,
    OCCUPIED,
    Codebook,
    pooled,
    shares,
)
from stc.export.demo.training.facts import HEADS, IGNORED, LATE
from stc.export.demo.training.sequences import KEEPS, Asker, Batch, batch, kept_of
from stc.scenes.scene import Scene, make_scene
from stc.scenes.words import CELLS, PATCH, SIDE

WINDOWS = {0.0: 6, 0.5: 8, 0.8: CELLS}
"""Side of what the tower sees of a frame from each share of its training on, patches: less work,
and most of what it sees is of a thing."""
AUX_BLOCK, LATE_BLOCK = 3, 4
"""Behind which blocks of the language model the heads sit that are thrown away: those at the words
of a question, and those where it ends, which also say the answer's word."""
OUTLINE_BLOCK, OUTLINE = 2, 16
"""Behind which block of the tower a head says which cells of a patch a thing covers, and how many
cells: shapes are told by their outlines, which nothing else asks for so early."""
FORM_BLOCK, FORM, FORM_SIDE = 4, 64, 40
"""Behind which block a head draws the whole thing that a patch belongs to, in how many cells, and
of how many px: that says more than the name of a shape, and is learnt bit by bit."""
DIGITS_SHARE = 0.35
"""Of the windows that show handwriting: the hardest thing to learn, and rare in scenes."""
QUESTIONS = 14
SHARPNESS = 8.0
"""Of the choice between colours, kinds and digits when the tower learns them."""

Figures = dict[str, float]


class Task(Protocol):
    """One step's loss, and what to tell of it. `share`, 0 to 1, is how much of training is done."""

    def loss(self, random: np.random.Generator, share: float) -> tuple[Tensor, Figures]: ...


@dataclass
class TowerTask:
    """Patches of windows round things say what they show."""

    model: Any
    codebook: Codebook
    outlines: nn.Linear
    forms: nn.Linear
    tokens: int = 2048
    """Patches of a shard of a batch."""

    def loss(self, random: np.random.Generator, share: float) -> tuple[Tensor, Figures]:
        side = max(size for begin, size in WINDOWS.items() if share >= begin)
        pixels, places, truth, covered, whole = self._windows(random, self.tokens // side**2, side)
        features, behind = features_of(self.model, pixels, places)
        outline = F.binary_cross_entropy_with_logits(self.outlines(behind[OUTLINE_BLOCK]), covered)
        thing = truth[..., OCCUPIED] > 0
        form = F.binary_cross_entropy_with_logits(
            self.forms(behind[FORM_BLOCK][thing]), whole[thing]
        )
        loss, figures = self._judged(features.flatten(0, 1), truth.flatten(0, 1))
        figures |= {"outline": outline.item(), "form": form.item()}
        return loss + 4.0 * outline + 4.0 * form, figures

    def _windows(self, random: np.random.Generator, count: int, side: int) -> tuple[Tensor, ...]:
        pixels: list[NDArray[Any]] = []
        places: list[NDArray[Any]] = []
        truth: list[NDArray[Any]] = []
        covered: list[NDArray[Any]] = []
        whole: list[NDArray[Any]] = []
        while len(pixels) < count:
            digits = random.random() < DIGITS_SHARE
            scene = _scene(random, digits)
            labels = scene.labels
            coded = None
            for frame in random.choice(scene.frame_count, 2, replace=False):
                wanted = labels.owner[frame] >= 0
                if digits:
                    wanted &= _digit(scene)[labels.owner[frame]]
                cells = np.argwhere(wanted)
                if not len(cells) and random.random() < 0.8:
                    continue
                centre = cells[random.integers(len(cells))] if len(cells) else (7, 7)
                corner = np.array(centre) - side // 2 + random.integers(-2, 3, 2)
                row, column = np.clip(corner, 0, CELLS - side)
                coded = shares(labels) if coded is None else coded
                down, across = slice(row, row + side), slice(column, column + side)
                rgb = scene.render(int(frame))
                empty = scene.render_without(tuple(range(len(labels.things))), int(frame))
                cut = (
                    slice(row * PATCH, (row + side) * PATCH),
                    slice(column * PATCH, (column + side) * PATCH),
                )
                pixels.append(rgb[cut])
                mask = (rgb != empty).any(2)
                covered.append(cells_of(mask[cut], side))
                forms = forms_of(mask, labels.centre[int(frame)])
                whole.append(forms[labels.owner[frame, down, across].ravel()])
                grid = np.arange(CELLS * CELLS).reshape(CELLS, CELLS)
                places.append(grid[down, across].ravel())
                truth.append(coded[frame, down, across].reshape(-1, len(NAMES)))
        return (
            pixel_values(np.stack(pixels)),
            torch.from_numpy(np.stack(places)),
            torch.from_numpy(np.stack(truth)),
            torch.from_numpy(np.stack(covered)),
            torch.from_numpy(np.stack(whole)),
        )

    def _judged(self, features: Tensor, truth: Tensor) -> tuple[Tensor, Figures]:
        found = features @ self.codebook.transposed
        rest = (features - found @ self.codebook.codes).square().sum(1) / NORM**2
        squared = (found - truth).square().sum(1) + 0.1 * rest
        thing = truth[:, OCCUPIED] > 0
        loss = squared[thing].mean() + squared[~thing].mean()
        figures: Figures = {}
        for name, span in (("colour", COLOUR), ("kind", KIND), ("digit", DIGIT)):
            said = thing & (truth[:, span].sum(1) > 0)
            if said.any():
                right = truth[said][:, span].argmax(1)
                chosen = found[said][:, span]
                loss = loss + F.cross_entropy(SHARPNESS * chosen, right)
                figures[name] = (chosen.argmax(1) == right).float().mean().item()
        figures["thing"] = ((found[:, OCCUPIED] > 0.5) == thing).float().mean().item()
        return loss, figures


@dataclass
class LanguageTask:
    """Questions are answered, about features made of labels or the tower's own."""

    model: Any
    heads: nn.Linear
    codebook: Codebook
    asker: Asker
    streams: int = 2
    real: bool = False
    pool: deque[tuple[Scene, Tensor]] = field(default_factory=lambda: deque(maxlen=256))

    def loss(self, random: np.random.Generator, share: float) -> tuple[Tensor, Figures]:
        streams = []
        # One budget for a batch: streams of unlike length would be filled up with padding.
        keeps = KEEPS if self.real or share > 0.4 else KEEPS[-2:]
        keep = int(keeps[random.integers(len(keeps))])
        for _ in range(self.streams):
            scene, features = self._seen(random)
            asked = [
                self.asker.asked(scene.labels, question)
                for question in scene.questions(random, QUESTIONS)
            ]
            if asked:
                streams.append((features, kept_of(features, keep, random), asked))
        return self._judged(batch(self.asker.before, streams), share)

    def _seen(self, random: np.random.Generator) -> tuple[Scene, Tensor]:
        if not self.real:
            scene = make_scene("train", int(random.integers(1 << 40)))
            return scene, self._made(scene, random)
        # Each stream that the tower has seen is asked about again, with other questions and keeps.
        if len(self.pool) > 8 and random.random() < 0.5:
            return self.pool[int(random.integers(len(self.pool)))]
        scene = make_scene("train", int(random.integers(1 << 40)))
        with torch.no_grad():
            features = seen(self.model, scene)
        self.pool.append((scene, features))
        return scene, features

    def _made(self, scene: Scene, random: np.random.Generator) -> Tensor:
        """Features [F, 49, D] of a tower that is nearly right."""
        coded = pooled(shares(scene.labels))
        loud = random.uniform(0.02, 0.1)
        coded = coded + loud * random.standard_normal(coded.shape, dtype=np.float32)
        features = torch.from_numpy(coded.astype(np.float32)) @ self.codebook.codes
        noise = random.standard_normal(features.shape, dtype=np.float32)
        return features + random.uniform(0.0, 0.3) * torch.from_numpy(noise)

    def _judged(self, one: Batch, share: float) -> tuple[Tensor, Figures]:
        embed = self.model.get_input_embeddings()
        joined = torch.cat([embed(one.before), one.video, embed(one.ids)], 1)
        start = joined.shape[1] - one.ids.shape[1]
        hidden, early, late = (each[:, start:] for each in decoded(self.model, joined, one))
        asked = one.labels != IGNORED
        logits = self.model.lm_head(hidden[asked])
        answers = one.labels[asked]
        loss = F.cross_entropy(logits, answers)
        stop = answers == self.asker.stop
        right = (logits.argmax(1) == answers)[~stop].float().mean().item()
        ends = one.words != IGNORED
        said = self.model.lm_head(self.model.model.language_model.norm(late[ends]))
        word = F.cross_entropy(said, one.words[ends])
        told = self._told(early, late, one.targets)
        figures = {"answer": loss.item(), "right": right, "word": word.item(), "heads": told.item()}
        return loss + word + (1.0 if share < 0.7 else 0.3) * told, figures

    def _told(self, early: Tensor, late: Tensor, targets: Tensor) -> Tensor:
        about = (targets != IGNORED).any(2)
        wanted = targets[about]
        sizes = list(HEADS.values())
        parts = self.heads(early[about]).split(sizes, 1)
        later = self.heads(late[about]).split(sizes, 1)
        losses = [
            F.cross_entropy(
                late_one if name in LATE else part, wanted[:, head], ignore_index=IGNORED
            )
            for head, (name, part, late_one) in enumerate(zip(HEADS, parts, later, strict=True))
            if (wanted[:, head] != IGNORED).any()
        ]
        return torch.stack(losses).mean()


def decoded(model: Any, joined: Tensor, one: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The language model's last hidden state and those behind AUX_BLOCK and LATE_BLOCK."""
    language = model.model.language_model
    hidden, behind = joined, {}
    turned = language.rotary_emb(hidden, one.positions)
    for number, layer in enumerate(language.layers):
        hidden = layer(
            hidden,
            attention_mask=one.allowed,
            position_ids=one.positions,
            position_embeddings=turned,
            use_cache=False,
        )
        behind[number + 1] = hidden
    return language.norm(hidden), behind[AUX_BLOCK], behind[LATE_BLOCK]


def _scene(random: np.random.Generator, digit: bool) -> Scene:
    """A scene to train on, with a digit in it where that is asked for."""
    while True:
        scene = make_scene("train", int(random.integers(1 << 40)))
        if not digit or any(_digit(scene)):
            return scene


def _digit(scene: Scene) -> NDArray[np.bool_]:
    """Which things are digits."""
    return np.array([thing.kind == "digit" for thing in scene.labels.things], bool)


def cells_of(covered: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """[side * 8, side * 8] px -> the share covered of each cell of every patch, [side**2, 16]."""
    fine = int(OUTLINE**0.5)
    step = PATCH // fine
    parts = covered.reshape(side, fine, step, side, fine, step)
    shares: NDArray[np.float32] = parts.mean((2, 5), dtype=np.float32)
    found: NDArray[np.float32] = shares.transpose(0, 2, 1, 3).reshape(side * side, OUTLINE)
    return found


def forms_of(covered: NDArray[np.bool_], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is covered round each centre, [K + 1, FORM]: FORM_SIDE px as 8 x 8 cells. The last is
    nobody's."""
    half, step = FORM_SIDE // 2, FORM_SIDE // 8
    padded = np.pad(covered, half)
    found = np.zeros((len(centres) + 1, FORM), np.float32)
    for number, (x, y) in enumerate(np.clip(np.rint(centres).astype(int), 0, SIDE - 1)):
        part = padded[y : y + FORM_SIDE, x : x + FORM_SIDE]
        found[number] = part.reshape(8, step, 8, step).mean((1, 3)).ravel()
    return found


def features_of(
    model: Any, pixels: Tensor, places: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Features [B, tokens, D] of pixel values [B, 3, h, w] before pooling, and the hidden states
    before and behind every block.

    places: [B, tokens], where the patches lie in the frame; None: all of them.
    """
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    where = embeddings.position_embedding.weight
    hidden = patches + (where if places is None else where[places])
    behind = [hidden]
    for layer in tower.encoder.layers:
        behind.append(layer(behind[-1], None))
    return model.model.multi_modal_projector(behind[-1]), behind


def seen(model: Any, scene: Scene) -> Tensor:
    """Features [F, 49, D] of a scene, pooled."""
    features, _ = features_of(model, pixel_values(scene.frames()))
    frames, _, width = features.shape
    halves = features.view(frames, CELLS // 2, 2, CELLS // 2, 2, width)
    return halves.mean((2, 4)).reshape(frames, -1, width)


def pixel_values(rgb: NDArray[np.uint8]) -> Tensor:
    """uint8 [.., h, w, 3] as the checkpoint's preprocessing makes them, [.., 3, h, w]."""
    return torch.from_numpy(rgb).movedim(-1, -3).float() / 127.5 - 1
