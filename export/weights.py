"""The weights behind `--model`: a checkpoint, the built-in demo model, or random ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from stc.errors import CheckpointError
from stc.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from stc.export.demo.tokenizer import MODEL
from stc.export.made_up.synthetic import SIZES, RandomCheckpoint, random_checkpoint
from stc.manifest import Weights


@contextmanager
def open_weights(
    kind: Weights, source: str | None = None
) -> Iterator[Checkpoint | RandomCheckpoint]:
    """Weights of `kind`, readable inside the `with`.

    `source` is the directory or hub id for kind `checkpoint`, the size for `random` (also with the
    rest of such a checkpoint's name behind it). Raises CheckpointError.
    """
    if kind == "checkpoint":
        assert source is not None
        yield open_checkpoint(source)
    elif kind == "random":
        size = next((size for size in SIZES if str(source).startswith(size)), None)
        if size is None:
            fix = "export again with: stc-export --model llava-ov --random-weights"
            raise CheckpointError(source, "no such random weights", " or ".join(SIZES), fix)
        yield random_checkpoint(size)
    else:
        yield replace(open_checkpoint(str(MODEL)), name=kind)
