"""A LLaVA-OneVision checkpoint: its vision geometry and single tensors, read on demand.

The language model stays on disk unless it is asked for (`Checkpoint.language`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import Tensor

from stc.errors import CheckpointError, first_line
from stc.export.checkpoint.shards import (
    NEWLINE,
    TOWER_UNUSED,
    Shards,
    check_left_over,
    check_no_adapter,
    check_signs,
    open_shards,
)
from stc.export.companions import CONFIG, FETCH, Companions, read_companions
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
ALLOWED = ["*.safetensors", "*.json", "tokenizer*", "vocab*", "merges*", "*.txt", "*.jinja"]
"""Files worth their download: no pickled weights, no weights of other frameworks."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
BY_HAND = "download the checkpoint on a connected machine and pass its directory"


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

    def vision(self, name: str) -> Tensor:
        """The tensor `name` below the vision model, read now; see `Shards.load`."""
        return self.shards.load(self.vision_prefix + name)

    def projector(self, name: str) -> Tensor:
        """The tensor `name` below the projector, read now; see `Shards.load`."""
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


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME."""
    return HUB_ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def download(hub_id: str) -> Path:
    """The directory of the checkpoint's complete snapshot; nothing is fetched twice.

    Raises CheckpointError when the host cannot be reached and no complete snapshot lies on this
    machine, or when the host refuses.
    """
    host = urlparse(constants.ENDPOINT).hostname
    try:
        return Path(snapshot_download(hub_id, allow_patterns=ALLOWED))
    except LocalEntryNotFoundError as error:
        reason = first_line(error.__cause__ or error)
        got = f"no such directory, and {host} could not be reached ({reason})"
        raise CheckpointError(hub_id, got, fix=BY_HAND) from error
    except GatedRepoError as error:
        fix = "accept its licence there, then run: hf auth login"
        raise CheckpointError(hub_id, f"gated on {host}", fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the name; a private one needs: hf auth login"
        got = f"no such directory, and no such model on {host}"
        raise CheckpointError(hub_id, got, fix=fix) from error
    except Exception as error:
        # The client lets through errors of its HTTP library, which differs between its versions.
        got = f"download from {host} failed ({first_line(error).rstrip('.')})"
        raise CheckpointError(hub_id, got, fix=f"try again, or {BY_HAND}") from error
