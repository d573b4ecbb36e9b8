"""The stages of training: what a step of each computes.

The tower learns to say what is in each patch while the language model learns, from features made
of labels, to answer; then the language model goes on with the tower's own features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from stc.export.demo.training.codebook import COLOUR, DIGIT, KIND, NORM, OCCUPIED, Codebook
from stc.export.demo.training.draws.facts import FRAME_HEADS, HEADS, IGNORED, LATE
from stc.export.demo.training.draws.streams import Stream
from stc.export.demo.training.draws.windows import Windows
from stc.export.demo.training.sequences import Batch, batch
from stc.scenes.words import CELLS

FRAME_BLOCK, AUX_BLOCK, LATE_BLOCK = 2, 3, 4
"""Behind which blocks of the language model the heads sit that are thrown away: those at frames'
tokens, those at the words of a question, and those where it ends, which also say the answer's
word."""
OUTLINE_BLOCK, FORM_BLOCK = 2, 4
"""Behind which blocks of the tower heads say which cells of a patch a thing covers, and draw the
whole thing that a patch belongs to: shapes are told by their outlines, which nothing else asks for
so early, and the whole says more than a name and is learnt bit by bit."""
SHARPNESS = 8.0
"""Of the choice between colours, kinds and digits when the tower learns them."""

MOTION = 8.0
"""Weight of how far things moved: small numbers, which few tokens can say."""

Figures = dict[str, Tensor]


class Task(Protocol):
    """What a step learns. `draw`, of numpy alone, may run in another process, ahead; `loss` of what
    it drew, with what to tell of it. `share`, 0 to 1, is how much of training is done."""

    @property
    def draw(self) -> Callable[[np.random.Generator, float], Any]: ...
    def loss(self, drawn: Any, share: float) -> tuple[Tensor, Figures]: ...


@dataclass
class TowerTask:
    """Patches of windows round things say what they show."""

    draw: Callable[[np.random.Generator, float], Windows]
    model: Any
    codebook: Codebook
    outlines: nn.Linear
    forms: nn.Linear

    def loss(self, drawn: Windows, share: float) -> tuple[Tensor, Figures]:
        device = self.model.device
        places, truth, covered, whole = (
            torch.from_numpy(one).to(device)
            for one in (drawn.places, drawn.truth, drawn.covered, drawn.whole)
        )
        features, behind = features_of(self.model, pixel_values(drawn.pixels, device), places)
        outline = F.binary_cross_entropy_with_logits(self.outlines(behind[OUTLINE_BLOCK]), covered)
        thing = truth[..., OCCUPIED] > 0
        form = F.binary_cross_entropy_with_logits(
            self.forms(behind[FORM_BLOCK][thing]), whole[thing]
        )
        loss, figures = self._judged(features.flatten(0, 1), truth.flatten(0, 1))
        figures |= {"outline": outline.detach(), "form": form.detach()}
        return loss + 4.0 * outline + 4.0 * form, figures

    def _judged(self, features: Tensor, truth: Tensor) -> tuple[Tensor, Figures]:
        found = features @ self.codebook.transposed
        rest = (features - found @ self.codebook.codes).square().sum(1) / NORM**2
        squared = (found - truth).square().sum(1) + 0.1 * rest
        thing = truth[:, OCCUPIED] > 0
        loss = mean_where(squared, thing) + mean_where(squared, ~thing)
        figures: Figures = {}
        for name, span in (("colour", COLOUR), ("kind", KIND), ("digit", DIGIT)):
            said = thing & (truth[:, span].sum(1) > 0)
            right = truth[:, span].argmax(1)
            chosen = found[:, span]
            wrong = F.cross_entropy(SHARPNESS * chosen, right, reduction="none")
            loss = loss + mean_where(wrong, said)
            figures[name] = mean_where((chosen.argmax(1) == right).float(), said).detach()
        figures["thing"] = ((found[:, OCCUPIED] > 0.5) == thing).float().mean()
        return loss, figures


def mean_where(values: Tensor, of: Tensor) -> Tensor:
    """The mean of `values` [n] where `of` [n]; 0 of none."""
    found: Tensor = (values * of).sum() / of.sum().clamp(min=1)
    return found


@dataclass
class WatchTask:
    """The first blocks of the language model learn to follow things from frame to frame, on
    features made of labels, before anything is asked: among questions they did not in 500 steps."""

    draw: Callable[[np.random.Generator, float], Sequence[Stream]]
    model: Any
    frame_heads: nn.Linear
    motion: nn.Linear
    codebook: Codebook
    before: NDArray[np.int64]

    def loss(self, drawn: Sequence[Stream], share: float) -> tuple[Tensor, Figures]:
        one = self.batch(drawn)
        before = self.model.get_input_embeddings()(one.before).detach()
        joined = torch.cat([before, one.video], 1)
        *_, hidden = hidden_states(self.model, joined, one, FRAME_BLOCK)
        return self.followed(hidden[:, one.before.shape[1] :], one)

    def batch(self, drawn: Sequence[Stream]) -> Batch:
        """The streams with their features, the tower's or of one that is nearly right."""
        if drawn[0].seen.dtype == np.uint8:
            with torch.no_grad():
                whole = seen(self.model, np.concatenate([one.seen for one in drawn]))
            features: Sequence[Tensor] = torch.split(whole, [len(one.seen) for one in drawn])
        else:
            features = [self._made(one) for one in drawn]
        return batch(self.before, list(zip(features, drawn, strict=True)))

    def _made(self, one: Stream) -> Tensor:
        device = self.model.device
        features = torch.from_numpy(one.seen).to(device) @ self.codebook.codes
        random = torch.Generator(device).manual_seed(one.noise)
        noise = torch.randn(features.shape, generator=random, device=device)
        return features + one.loudness * noise

    def followed(self, video: Tensor, one: Batch) -> tuple[Tensor, Figures]:
        """What the frames' tokens should tell, from their hidden states [B, v, D]."""
        told = _told(self.frame_heads, FRAME_HEADS, dict.fromkeys(FRAME_HEADS, video), one.shown)
        known = ~one.moved.isnan().any(2)
        missed = F.smooth_l1_loss(self.motion(video[known]), one.moved[known], reduction="none")
        motion = missed.sum() / known.sum().clamp(min=1)
        return told + MOTION * motion, {"frames": told.detach(), "motion": motion.detach()}


@dataclass
class LanguageTask(WatchTask):
    """Questions are answered, about features made of labels or the tower's own."""

    heads: nn.Linear
    stop: int

    def loss(self, drawn: Sequence[Stream], share: float) -> tuple[Tensor, Figures]:
        one = self.batch(drawn)
        embed = self.model.get_input_embeddings()
        joined = torch.cat([embed(one.before), one.video, embed(one.ids)], 1)
        start = joined.shape[1] - one.ids.shape[1]
        behind = hidden_states(self.model, joined, one)
        early, late = behind[AUX_BLOCK][:, start:], behind[LATE_BLOCK][:, start:]
        norm = self.model.model.language_model.norm
        asked = one.labels != IGNORED
        logits = self.model.lm_head(norm(behind[-1][:, start:][asked]))
        answers = one.labels[asked]
        loss = F.cross_entropy(logits, answers)
        right = mean_where((logits.argmax(1) == answers).float(), answers != self.stop)
        ends = one.words != IGNORED
        word = F.cross_entropy(self.model.lm_head(norm(late[ends])), one.words[ends])
        places = {name: late if name in LATE else early for name in HEADS}
        told = _told(self.heads, HEADS, places, one.targets)
        followed, figures = self.followed(behind[FRAME_BLOCK][:, one.before.shape[1] : start], one)
        sought = looked_for(self.model, behind[LATE_BLOCK], one)
        figures = {"heads": told, "choice": sought} | figures
        figures = {"answer": loss, "right": right, "word": word} | figures
        loss = loss + word + sought + (1.0 if share < 0.7 else 0.3) * (told + followed)
        return loss, {name: figure.detach() for name, figure in figures.items()}


def _told(
    heads: nn.Linear, sizes: Mapping[str, int], places: Mapping[str, Tensor], targets: Tensor
) -> Tensor:
    """The mean loss of `heads`, each at its place [B, t, D], over those with any of `targets`
    [B, t, len(sizes)]."""
    about = (targets != IGNORED).any(2)
    wanted = targets[about]
    read = {id(one): heads(one[about]).split(list(sizes.values()), 1) for one in places.values()}
    losses, any_told = [], []
    for number, name in enumerate(sizes):
        part, mine = read[id(places[name])][number], wanted[:, number] != IGNORED
        wrong = F.cross_entropy(part, wanted[:, number], ignore_index=IGNORED, reduction="none")
        losses.append(mean_where(wrong, mine))
        any_told.append(mine.any())
    return torch.stack(losses).sum() / torch.stack(any_told).sum().clamp(min=1)


def looked_for(model: Any, hidden: Tensor, one: Batch) -> Tensor:
    """How little one head of the block behind LATE_BLOCK looks from a question's end at the right
    one of its options, -log of its attention, mean: there the word is known, and the letter stands
    beside it."""
    layer = model.model.language_model.layers[LATE_BLOCK]
    attention, width = layer.self_attn, layer.self_attn.head_dim
    if not len(one.choices):
        return hidden.new_zeros(())
    row, end, right = one.choices.T
    normed = layer.input_layernorm(hidden)
    turned = model.model.language_model.rotary_emb(hidden, one.positions)
    query = attention.q_proj(normed[row, end])[:, None, None, :width]
    keys = attention.k_proj(normed)[:, None, :, :width]
    query, _ = apply_rotary_pos_emb(query, query, *(part[row, end][:, None] for part in turned))
    keys, _ = apply_rotary_pos_emb(keys, keys, *turned)
    scores = (query[:, 0] @ keys[row, 0].mT)[:, 0] * attention.scaling
    scores = scores.masked_fill(~one.allowed[row, 0, end], -torch.inf)
    return F.cross_entropy(scores, right)


def hidden_states(
    model: Any, joined: Tensor, one: Batch, blocks: int | None = None
) -> list[Tensor]:
    """Hidden states [B, t, D] of the language model before and behind every block, or the first
    `blocks`, of `joined` [B, t, D], a batch's tokens or its first t."""
    language = model.model.language_model
    length = joined.shape[1]
    positions = one.positions[:, :length]
    turned = language.rotary_emb(joined, positions)
    behind = [joined]
    for layer in language.layers[:blocks]:
        hidden = layer(
            behind[-1],
            attention_mask=one.allowed[..., :length, :length],
            position_ids=positions,
            position_embeddings=turned,
            use_cache=False,
        )
        behind.append(hidden)
    return behind


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


def seen(model: Any, frames: NDArray[np.uint8]) -> Tensor:
    """Features [F, 49, D] of frames [F, 112, 112, 3], pooled."""
    features, _ = features_of(model, pixel_values(frames, model.device))
    count, _, width = features.shape
    halves = features.view(count, CELLS // 2, 2, CELLS // 2, 2, width)
    return halves.mean((2, 4)).reshape(count, -1, width)


def pixel_values(rgb: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """uint8 [.., h, w, 3] as the checkpoint's preprocessing makes them, [.., 3, h, w]."""
    return torch.from_numpy(rgb).to(device).movedim(-1, -3).float() / 127.5 - 1
