"""How well a learner answers about scenes of the validation split, while it trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from stc.export.demo.training.draws.facts import IGNORED
from stc.export.demo.training.draws.streams import KEEPS, QUESTIONS, Stream, rank_of, shown_of
from stc.export.demo.training.sequences import batch
from stc.export.demo.training.stages import hidden_states, seen
from stc.export.demo.training.train import Learner
from stc.scenes.scene import make_scene

SCENES = 60


@torch.no_grad()
def judged(learner: Learner, scenes: int = SCENES) -> Iterator[str]:
    """A line for every budget, and one for every kind of question at the first of them."""
    model = learner.model
    found: dict[int, dict[str, list[bool]]] = {keep: defaultdict(list) for keep in KEEPS}
    for seed in range(scenes):
        random = np.random.default_rng(seed)
        scene = make_scene("validation", seed)
        questions = scene.questions(random, QUESTIONS)
        frames = scene.frames()
        features = seen(model, frames)
        asked = [learner.asker.asked(scene.labels, question) for question in questions]
        for keep in KEEPS if asked else ():
            rank = rank_of(len(frames), keep, random)
            stream = Stream(frames, keep, rank, asked, *shown_of(scene.labels))
            one = batch(learner.asker.before, [(features, stream)])
            embed = model.get_input_embeddings()
            joined = torch.cat([embed(one.before), one.video, embed(one.ids)], 1)
            last = model.model.language_model.norm(hidden_states(model, joined, one)[-1])
            chosen = model.lm_head(last[:, -one.ids.shape[1] :]).argmax(2)[0]
            told = (one.labels[0] != IGNORED) & (one.labels[0] != learner.asker.stop)
            right = (chosen == one.labels[0])[told].tolist()
            for question, yes in zip(questions, right, strict=True):
                for name in ("all", question.family, f"{question.family}: {question.kind}"):
                    found[keep][name].append(yes)
    for keep, kinds in found.items():
        shown = " ".join(
            f"{name} {np.mean(yes):.3f}" for name, yes in kinds.items() if ":" not in name
        )
        yield f"{keep} tokens kept: {shown}"
    for name, yes in sorted(found[KEEPS[0]].items()):
        if ":" in name:
            yield f"{name}: {np.mean(yes):.3f} of {len(yes)}"
