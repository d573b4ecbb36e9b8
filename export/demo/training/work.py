"""What one process of a training does, from the first step to the checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from stc.export.demo.checkpoint import write_checkpoint
from stc.export.demo.tokenizer import made_tokenizer
from stc.export.demo.training.judge import judged
from stc.export.demo.training.stages import Task
from stc.export.demo.training.train import (
    Learner,
    Parts,
    Plan,
    language_task,
    run_stage,
    tower_task,
    watch_task,
)


def work(rank: int, processes: int, plan: Plan, output: Path, store: str, device: str) -> None:
    """The training's process `rank` of `processes` on a CPU, whose gradients are averaged; or the
    only one on a GPU, for which `processes` others draw."""
    on_gpu = device != "cpu"
    drawers = processes if on_gpu else 0
    alone = on_gpu or processes == 1
    torch.set_num_threads(len(os.sched_getaffinity(0)) if processes == 1 and not on_gpu else 1)
    if not alone:
        distributed.init_process_group("gloo", store, rank=rank, world_size=processes)
    tokenizer = made_tokenizer()
    learner = Learner(tokenizer, plan.seed, device)
    kept = output / "steps"

    def say(line: str) -> None:
        if rank == 0:
            print(line, file=sys.stderr, flush=True)

    stages: list[tuple[str, Task, Parts, int]] = [
        ("tower", tower_task(learner), learner.tower_parts(), plan.tower),
        ("watch", watch_task(learner), learner.watch_parts(), plan.watch),
        ("language", language_task(learner, real=False), learner.language_parts(), plan.language),
        ("together", language_task(learner, real=True), learner.language_parts(), plan.together),
    ]
    shards = (0, 1) if alone else (rank,)
    for name, task, parts, steps in stages:
        run_stage(name, task, parts, steps, plan, kept, say, shards, drawers)
    if rank == 0:
        write_checkpoint(output / "checkpoint", tokenizer, learner.model)
        for line in judged(learner):
            say(line)
    if not alone:
        distributed.destroy_process_group()
