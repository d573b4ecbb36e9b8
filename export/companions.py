"""The small files of a checkpoint: settings, tokenizer, chat template. Each is read once.

What is read here is what the export takes its settings from and what it copies into the bundle: a
file that changes meanwhile, or a link to something else, cannot make the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from stc.errors import CheckpointError
from stc.export.checkpoint.json_object import FETCH, Described, parse_object, parse_text, read_bytes

CONFIG = "config.json"
GENERATION = "generation_config.json"
PROCESSOR = "processor_config.json"
VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
PREPROCESSOR = "preprocessor_config.json"

NAMES = (
    CONFIG,
    PREPROCESSOR,
    VIDEO_PREPROCESSOR,
    PROCESSOR,
    GENERATION,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer*.json",
    "chat_template*.json",
    "chat_template*.jinja",
    "vocab*.json",
    "vocab*.txt",
    "merges*.txt",
)


@dataclass(frozen=True)
class Companions:
    """The files of `directory` that go with weights, by name; every one is what its name says:
    a JSON object, or text in UTF-8."""

    directory: Path
    contents: Mapping[str, bytes]

    def __contains__(self, name: str) -> bool:
        return name in self.contents

    def described(self, name: str) -> Described:
        """The JSON object in file `name`.

        Raises CheckpointError when there is none.
        """
        if name not in self.contents:
            raise CheckpointError(self.directory / name, "no such file", fix=FETCH)
        path = self.directory / name
        return Described(path, parse_object(path, self.contents[name]))


def read_companions(directory: Path) -> Companions:
    """The companions that lie in `directory`, read now.

    Raises CheckpointError about one that is no regular file, a link out of the checkpoint to
    another file, larger than any tokenizer, or not what its name says.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise CheckpointError(directory, f"cannot be read ({error.strerror})") from error
    contents: dict[str, bytes] = {}
    for name in names:
        if any(fnmatch(name, glob) for glob in NAMES):
            path = directory / name
            content = read_bytes(path)
            _check_link(path)
            (parse_object if path.suffix == ".json" else parse_text)(path, content)
            contents[name] = content
    return Companions(directory, contents)


def _check_link(path: Path) -> None:
    """What a link leads to is copied into the bundle: it must be the file that its name promises.

    A link within the checkpoint, to a file of the same name, or to one in a store of the hub, where
    files are named by their content, is.
    """
    if not path.is_symlink():
        return
    target = path.resolve()
    inside = target.is_relative_to(path.parent.resolve())
    in_store = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not (inside or in_store or target.name == path.name):
        raise CheckpointError(
            path,
            f"a link to {target}, which would be copied into the bundle",
            f"a file, or a link to another {path.name}",
            "put a copy in its place if that is the right file",
        )
