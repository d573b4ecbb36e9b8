"""The weights behind `--model`: a checkpoint, the built-in demo model, or random ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stc.export.checkpoint import Checkpoint, open_checkpoint
from stc.export.demo import write_demo_checkpoint
from stc.export.synthetic import RandomCheckpoint, random_checkpoint
from stc.manifest import Weights


@contextmanager
def open_weights(
    kind: Weights, checkpoint: str | None = None
) -> Iterator[Checkpoint | RandomCheckpoint]:
    """Weights of `kind`, readable inside the `with`.

    `checkpoint` is the directory or hub id for kind `checkpoint`. Raises CheckpointError.
    """
    if kind == "checkpoint":
        assert checkpoint is not None
        yield open_checkpoint(checkpoint)
    elif kind == "random":
        yield random_checkpoint("llava-ov-0.5b")
    else:
        with tempfile.TemporaryDirectory(prefix="stc-demo-") as folder:
            directory = Path(folder) / "demo"
            write_demo_checkpoint(directory)
            yield open_checkpoint(str(directory))
