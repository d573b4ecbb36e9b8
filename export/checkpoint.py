"""A LLaVA-OneVision checkpoint: its vision geometry and single tensors, read on demand.

The language model stays on disk unless it is asked for (`Checkpoint.language`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from stc.errors import CheckpointError
from stc.export.checkpoint_file import FETCH, read_bytes
from stc.export.hub import download, is_hub_id
from stc.export.language_weights import CheckpointLanguage, checkpoint_language
from stc.export.shards import Shards, open_shards
from stc.export.tensor_shapes import Shapes, projector_shapes, vision_shapes
from stc.export.vision_spec import read_spec
from stc.manifest import VisionSpec

VISION_PREFIXES = (
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)
PROJECTOR_PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.")
"""What precedes the canonical names on disk: transformers 4.x, then 5.x, then a saved state dict
of either."""

COMPANIONS = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*.json",
    "chat_template*",
    "vocab*",
    "merges*",
)


class VisionWeights(Protocol):
    """What an export reads: a checkpoint, or weights made up on demand."""

    @property
    def name(self) -> str:
        """What the weights are called; no path of this machine."""

    @property
    def spec(self) -> VisionSpec:
        """Geometry and preprocessing."""

    def vision(self, name: str) -> Tensor:
        """The tensor `name` below the vision model, such as `encoder.layers.0.mlp.fc1.weight`,
        as float32 and finite."""

    def projector(self, name: str) -> Tensor:
        """The tensor `name` below the projector, such as `linear_1.weight`, as float32 and
        finite."""

    def companions(self) -> dict[str, bytes]:
        """The files that accompany the graphs in a bundle, by name."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose files were found whole; satisfies VisionWeights."""

    name: str
    directory: Path
    spec: VisionSpec
    shards: Shards
    vision_prefix: str
    projector_prefix: str

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, as the files name it, read now, as float32.

        Raises CheckpointError when it is missing, quantised or not finite.
        """
        return self.shards.load(name)

    def vision(self, name: str) -> Tensor:
        """The tensor `name` below the vision model; see `tensor`."""
        return self.shards.load(self.vision_prefix + name)

    def projector(self, name: str) -> Tensor:
        """The tensor `name` below the projector; see `tensor`."""
        return self.shards.load(self.projector_prefix + name)

    def language(self) -> CheckpointLanguage:
        """The decoder, every tensor of it found; none is read yet.

        Raises CheckpointError when it is incomplete or of a kind that cannot be exported.
        """
        return checkpoint_language(self.directory, self.shards)

    def companions(self) -> dict[str, bytes]:
        """Configuration, preprocessing, tokenizer and chat template, as they lie there."""
        files = {file for glob in COMPANIONS for file in self.directory.glob(glob)}
        return {file.name: read_bytes(file) for file in sorted(files) if file.is_file()}


def open_checkpoint(id_or_dir: str) -> Checkpoint:
    """The checkpoint in a directory, or of hub id ORG/NAME, found complete before any work.

    Every weights file's header and length, and the shape of every tensor of the vision tower and
    the projector, have been compared with what the configuration asks for.

    Raises CheckpointError, one line with a mend, otherwise.
    """
    path = Path(id_or_dir).expanduser()
    if id_or_dir and path.is_dir():
        directory, name = path, path.resolve().name
    elif path.is_file():
        raise CheckpointError(path, "a file", "a directory", "pass the checkpoint's directory")
    elif is_hub_id(id_or_dir):
        directory, name = download(id_or_dir), id_or_dir
    else:
        raise CheckpointError(
            repr(id_or_dir),
            "no such directory",
            "a checkpoint's directory or a hub id ORG/NAME",
            "check the path",
        )
    spec = read_spec(directory)
    shards = open_shards(directory)
    return Checkpoint(
        name=name,
        directory=directory,
        spec=spec,
        shards=shards,
        vision_prefix=_checked_prefix(shards, VISION_PREFIXES, vision_shapes(spec)),
        projector_prefix=_checked_prefix(shards, PROJECTOR_PREFIXES, projector_shapes(spec)),
    )


def _checked_prefix(shards: Shards, prefixes: tuple[str, ...], shapes: Shapes) -> str:
    """The prefix under which every tensor of `shapes` lies, in its shape."""
    first = next(iter(shapes))
    # Without any match the first prefix stands, and its missing tensor is what the error names.
    matching = [prefix for prefix in prefixes if prefix + first in shards.tensors]
    prefix = next(iter(matching), prefixes[0])
    for name, expected in shapes.items():
        stored = shards.find(prefix + name)
        if stored.shape != expected:
            subject = f"{stored.file}: {prefix}{name}"
            got = f"shape {list(stored.shape)}"
            raise CheckpointError(subject, got, f"{list(expected)} by config.json", FETCH)
    return prefix
