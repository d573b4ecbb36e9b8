"""What one process of a training does, from the first step to the checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from stc.export.demo.checkpoint import demo_tokenizer, write_checkpoint
from stc.export.demo.training.judge import judged
from stc.export.demo.training.train import Learner, Plan, language_task, run_stage, tower_task


def work(rank: int, processes: int, plan: Plan, output: Path, store: str) -> None:
    torch.set_num_threads(1 if processes > 1 else len(os.sched_getaffinity(0)))
    alone = processes == 1
    if not alone:
        distributed.init_process_group("gloo", store, rank=rank, world_size=processes)
    tokenizer = demo_tokenizer()
    learner = Learner(tokenizer, plan.seed)
    steps = output / "steps"

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    # One after the other where there is one process; else each does its own, and reads the other's.
    for owner, name, task, parts, count in (
        (0, "tower", tower_task(learner), learner.tower_parts(), plan.tower),
        (1, "language", language_task(learner, real=False), learner.language_parts(), plan.language),
    ):
        if alone or rank == owner:
            run_stage(name, task, parts, count, plan, steps, say)
    if not alone:
        distributed.barrier()
    run_stage("tower", tower_task(learner), learner.tower_parts(), 0, plan, steps, say)
    run_stage("language", language_task(learner, real=False), learner.language_parts(), 0, plan, steps, say)
    shards = (0, 1) if alone else (rank,)
    run_stage(
        "together",
        language_task(learner, real=True),
        learner.language_parts(),
        plan.together,
        plan,
        steps,
        say if rank == 0 else lambda _: None,
        shards,
        averaged=not alone,
    )
    if rank == 0:
        write_checkpoint(output / "checkpoint", tokenizer, learner.model)
        for line in judged(learner):
            say(line)
    if not alone:
        distributed.destroy_process_group()
