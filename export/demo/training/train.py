"""Training of the demo model from nothing: step by step, seeded, and to be gone on with.

Everything that a step draws follows from the seed, the stage and the step's number, and what was
learnt is kept every SAVED steps: a run that was stopped goes on as if it had not been. Two
processes share the work, half of each batch each; one process does the same alone. On a GPU one
process learns what others draw.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import LlavaOnevisionForConditionalGeneration

from stc.export.demo.checkpoint import demo_config
from stc.export.demo.tokenizer import DemoTokenizer
from stc.export.demo.training.codebook import NAMES, NORM, Codebook
from stc.export.demo.training.draws.facts import FRAME_HEADS, HEADS
from stc.export.demo.training.draws.pool import batches
from stc.export.demo.training.draws.streams import Asker, StreamDraw
from stc.export.demo.training.draws.windows import FORM, OUTLINE, WindowDraw
from stc.export.demo.training.muon import Muon
from stc.export.demo.training.stages import FRAME_BLOCK, LanguageTask, Task, TowerTask, WatchTask
from stc.scenes.words import CELLS

SAVED = 200
"""Steps after which what was learnt is kept."""
WARM_UP = 50
DECAY_FROM = 0.6
"""Share of a stage after which the learning rate falls to nothing."""


Parts = list[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class Plan:
    """How many steps each stage takes, and its learning rates."""

    tower: int = 4000
    watch: int = 1200
    language: int = 4000
    together: int = 1500
    seed: int = 0
    muon: float = 0.02
    adam: float = 2e-3

    def scaled(self, share: float) -> Plan:
        """The same with `share` of the steps."""
        stages = ("tower", "watch", "language", "together")
        return replace(self, **{one: max(1, round(share * getattr(self, one))) for one in stages})


class Learner:
    """The model on `device`, with what is thrown away after training."""

    def __init__(self, tokenizer: DemoTokenizer, seed: int, device: str = "cpu") -> None:
        torch.manual_seed(seed)
        config = demo_config(tokenizer)
        self.model: Any = LlavaOnevisionForConditionalGeneration(config)
        width = config.text_config.hidden_size
        self.codebook = Codebook(width)
        self.heads = nn.Linear(width, sum(HEADS.values()))
        self.frame_heads = nn.Linear(width, sum(FRAME_HEADS.values()))
        self.motion = nn.Linear(width, 2)
        self.outlines = nn.Linear(config.vision_config.hidden_size, OUTLINE)
        self.forms = nn.Linear(config.vision_config.hidden_size, FORM)
        self.asker = Asker(tokenizer)
        self.thrown = self.heads, self.frame_heads, self.motion, self.outlines, self.forms
        self._begin(tokenizer)
        for one in (self.model, *self.thrown):
            one.to(device)
        self.codebook.codes = self.codebook.codes.to(device)

    def _begin(self, tokenizer: DemoTokenizer) -> None:
        """Words start from the codes of what they name."""
        words = self.model.get_input_embeddings().weight
        with torch.no_grad():
            words.normal_(0.0, 0.1)
            for name in NAMES:
                for mark in ("", " "):
                    ids = tokenizer.encode(mark + name)
                    if len(ids) == 1:
                        words[ids[0]] += self.codebook.of(name) * (1.5 / NORM)
            where = self.model.model.vision_tower.embeddings.position_embedding.weight
            where.copy_(waves(CELLS, where.shape[1]))

    def tower_parts(self) -> Parts:
        """What the tower's stage trains."""
        own = [
            (name, one)
            for name, one in self.model.model.named_parameters()
            if name.startswith(("vision_tower", "multi_modal_projector"))
            and "post_layernorm" not in name
        ]
        thrown = nn.ModuleDict({"outlines": self.outlines, "forms": self.forms})
        return [*own, *thrown.named_parameters("heads")]

    def watch_parts(self) -> Parts:
        """What the language model's first stage trains."""
        first = tuple(f"layers.{block}." for block in range(FRAME_BLOCK))
        whole = self.language_parts()
        return [one for one in whole if one[0].startswith((*first, "heads.frames", "heads.motion"))]

    def language_parts(self) -> Parts:
        """What the language model's stages of questions train."""
        own = self.model.model.language_model.named_parameters()
        heads = {"words": self.heads, "frames": self.frame_heads, "motion": self.motion}
        thrown = nn.ModuleDict(heads)
        return [*own, *thrown.named_parameters("heads")]


def waves(side: int, width: int) -> Tensor:
    """Positions of side * side patches as sines and cosines of each axis, [side**2, width]: what is
    beside what can then be told by a product, and shapes are learnt."""
    lengths = torch.logspace(math.log10(3), math.log10(4 * side), width // 4)
    turns = 2 * math.pi * torch.arange(side).unsqueeze(1) / lengths
    axis = torch.cat([turns.sin(), turns.cos()], 1)
    down = axis.unsqueeze(1).expand(side, side, -1)
    across = axis.unsqueeze(0).expand(side, side, -1)
    return 0.5 * torch.cat([down, across], 2).reshape(side * side, width)


class Optimizers:
    """Muon for the matrices between layers, AdamW for everything else."""

    def __init__(self, parts: Iterable[tuple[str, nn.Parameter]], plan: Plan) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, one in parts:
            inner = one.ndim == 2 and not name.startswith(("embed", "heads"))
            (matrices if inner and "embedding" not in name else others).append(one)
        self._all: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=plan.muon, weight_decay=0.01),
            torch.optim.AdamW(others, lr=plan.adam, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.parameters = [*matrices, *others]

    def step(self, rate: float) -> None:
        """One step at `rate` times the plan's rates; gradients are then gone."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for one in self._all:
            for group in one.param_groups:
                group.setdefault("full", group["lr"])
                group["lr"] = group["full"] * rate
            one.step()
            one.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [one.state_dict() for one in self._all]

    def load(self, states: list[dict[str, Any]]) -> None:
        for one, state in zip(self._all, states, strict=True):
            one.load_state_dict(state)


def rate_at(step: int, steps: int) -> float:
    """The share of the full learning rate at `step` of `steps`."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    left = (steps - step) / max(1, math.ceil(steps * (1 - DECAY_FROM)))
    return min(1.0, left)


def run_stage(
    name: str,
    task: Task,
    parts: Parts,
    steps: int,
    plan: Plan,
    folder: Path,
    say: Callable[[str], None],
    shards: tuple[int, ...],
    drawers: int = 0,
) -> None:
    """`steps` steps of `task` on `parts`; goes on where `folder` says it stopped.

    shards: the parts of each batch that this process computes; gradients are averaged over all.
    drawers: how many processes draw them ahead; 0: this one draws them itself.
    """
    optimizers = Optimizers(parts, plan)
    file = folder / f"{name}.pt"
    begun = 0
    if file.exists():
        state = torch.load(file, weights_only=True, map_location="cpu")
        begun = state["step"]
        with torch.no_grad():
            for part, one in parts:
                one.copy_(state["parts"][part])
        if begun < steps:
            optimizers.load(state["optimizers"])
    told = time.perf_counter()
    key, left = (plan.seed, *name.encode()), range(begun, steps)
    for step, shared in zip(left, batches(task.draw, key, left, shards, drawers), strict=True):
        for drawn in shared:
            loss, figures = task.loss(drawn, step / steps)
            torch.autograd.backward(loss / len(shards))
        if distributed.is_initialized():
            for one in optimizers.parameters:
                if one.grad is None:  # a head that this shard had nothing for
                    one.grad = torch.zeros_like(one)
                distributed.all_reduce(one.grad)
                one.grad /= distributed.get_world_size()
        optimizers.step(rate_at(step, steps))
        if shards[0] == 0 and ((step + 1) % SAVED == 0 or step + 1 == steps):
            _save(file, step + 1, parts, optimizers.state() if step + 1 < steps else [])
        if (step + 1) % 25 == 0 or step + 1 == steps:
            took = time.perf_counter() - told
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in figures.items())
            say(f"{name} {step + 1}/{steps}: {shown} ({took / 25:.2f} s a step)")
            told = time.perf_counter()


def _save(file: Path, step: int, parts: Parts, optimizers: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "parts": {name: one.detach() for name, one in parts},
        "optimizers": optimizers,
    }
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def tower_task(learner: Learner) -> TowerTask:
    """The tower's stage."""
    parts = learner.model, learner.codebook, learner.outlines, learner.forms
    return TowerTask(WindowDraw(), *parts)


def watch_task(learner: Learner) -> WatchTask:
    """The language model's first stage."""
    draw = StreamDraw(learner.asker, streams=4, real=False, questions=False)
    parts = learner.model, learner.frame_heads, learner.motion, learner.codebook
    return WatchTask(draw, *parts, learner.asker.before)


def language_task(learner: Learner, *, real: bool) -> LanguageTask:
    """The language model's stages of questions."""
    asker = learner.asker
    draw = StreamDraw(asker, streams=4 if real else 2, real=real)
    parts = learner.model, learner.frame_heads, learner.motion, learner.codebook
    return LanguageTask(draw, *parts, asker.before, learner.heads, asker.stop)
