"""A LLaVA-OneVision checkpoint: its vision geometry and single tensors, read on demand.

The language model stays on disk unless it is asked for (`Checkpoint.language`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from stc.errors import CheckpointError
from stc.export.checkpoint.hub import download, is_hub_id
from stc.export.checkpoint.json_object import FETCH
from stc.export.checkpoint.shards import Shards, open_shards
from stc.export.checkpoint.tensor_account import (
    NEWLINE,
    TOWER_UNUSED,
    check_left_over,
    check_no_adapter,
    check_signs,
)
from stc.export.companions import CONFIG, Companions, read_companions
from stc.export.decoders.qwen2.spec import described_language
from stc.export.decoders.qwen2.weights import PARTS, CheckpointLanguage, checkpoint_language
from stc.export.layers import Shapes
from stc.export.models.llava_onevision import described_spec, parse_config, projector_shapes
from stc.export.towers.part import TowerPart
from stc.export.towers.siglip.tower import SIGLIP
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory whose files were found whole; satisfies VisionWeights."""

    name: str
    directory: Path
    files: Companions
    spec: VisionSpec
    shards: Shards
    vision_prefix: str
    projector_prefix: str
    tower: TowerPart = SIGLIP

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
        return checkpoint_language(described_language(self.files), self.shards)

    def companions(self) -> dict[str, bytes]:
        """Configuration, preprocessing, tokenizer and chat template, as they lay there when the
        checkpoint was opened."""
        return dict(self.files.contents)


def open_checkpoint(id_or_dir: str) -> Checkpoint:
    """The checkpoint in a directory, or of hub id ORG/NAME, found complete before any work.

    Every weights file's header and length, and the shape of every tensor of the vision tower and
    the projector, have been compared with what the configuration asks for; no tensor outside the
    decoder is left over.

    Raises CheckpointError, one line with a fix, otherwise.
    """
    directory, name = _located(id_or_dir)
    check_no_adapter(directory)
    files = read_companions(directory)
    spec = described_spec(files)
    shards = open_shards(directory)
    check_signs(shards)
    checkpoint = Checkpoint(
        name=name,
        directory=directory,
        files=files,
        spec=spec,
        shards=shards,
        vision_prefix=_checked_prefix(shards, VISION_PREFIXES, SIGLIP.shapes(spec)),
        projector_prefix=_checked_prefix(shards, PROJECTOR_PREFIXES, projector_shapes(spec)),
    )
    _check_left_over(checkpoint)
    return checkpoint


def _located(id_or_dir: str) -> tuple[Path, str]:
    """The checkpoint's directory and its name."""
    path = Path(id_or_dir)
    try:
        path = path.expanduser()
        if id_or_dir and path.is_dir():
            return path, path.resolve().name
        if path.is_file():
            raise CheckpointError(path, "a file", "a directory", "pass the checkpoint's directory")
    except (OSError, RuntimeError) as error:
        # A name too long for the system, or ~NAME of nobody.
        got = f"cannot be looked up ({getattr(error, 'strerror', None) or error})"
        raise CheckpointError(id_or_dir[:200], got, fix="check the path") from error
    if is_hub_id(id_or_dir):
        return download(id_or_dir), id_or_dir
    raise CheckpointError(
        repr(id_or_dir),
        "no such directory",
        "a checkpoint's directory or a hub id ORG/NAME",
        "check the path",
    )


def _check_left_over(checkpoint: Checkpoint) -> None:
    """Every tensor outside the decoder is read, or known to play no part in what a video needs.

    The blocks behind the features that LLaVA-OneVision takes play none, nor does the tower's last
    one, which its configuration leaves out.
    """
    shards, prefix, spec = checkpoint.shards, checkpoint.vision_prefix, checkpoint.spec
    layers = parse_config(checkpoint.files.described(CONFIG)).vision_config.num_hidden_layers
    within = checkpoint.tower.shapes(spec.model_copy(update={"blocks": layers}))
    longer = checkpoint.tower.shapes(spec.model_copy(update={"blocks": layers + 1}))
    whole = all(prefix + name in shards.tensors for name in longer)
    tower = {prefix + name for name in (longer if whole else within)}
    tower |= {
        name
        for name in shards.tensors
        if name.startswith(prefix) and TOWER_UNUSED.fullmatch(name, len(prefix))
    }
    projector = {checkpoint.projector_prefix + name for name in projector_shapes(spec)}
    newline = set(filter(NEWLINE.fullmatch, shards.tensors))
    names = [name for name in shards.tensors if not name.startswith(PARTS)]
    expected = f"the tensors of {layers} blocks of the tower and of the projector"
    check_left_over(shards, names, tower | projector | newline, expected)


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
