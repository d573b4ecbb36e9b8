"""Where a command writes: never onto what it reads, nor two results onto one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stc.errors import SettingsError
from stc.runtime.video.open import local_path

STDOUT = "-"


def refuse_shared_paths(
    outputs: Mapping[str, Path | str | None],
    *,
    video: str | None,
    bundle: Path,
    checkpoint: str | None = None,
) -> None:
    """Nothing is read or written at, or inside, a path that one of `outputs` would replace.

    outputs: paths by what a user calls them; None and `-` are no path. Links, hard links and
    file:// addresses are seen through.

    Raises SettingsError naming both.
    """
    taken = {} if video is None else {"--video": Path(local_path(video))}
    folders = {"the bundle": bundle}
    if checkpoint is not None:
        folders["--checkpoint"] = Path(checkpoint)
    for name, output in outputs.items():
        if output is None or output == STDOUT:
            continue
        path = Path(output)
        for other, place in taken.items():
            if _same(path, place):
                raise _shared(name, f"{output} is {other} as well")
        for other, folder in folders.items():
            if folder.is_dir() and Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
                raise _shared(name, f"{output} is inside {other} {folder}")
        taken[name] = path


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def _shared(name: str, got: str) -> SettingsError:
    return SettingsError(name, got, fix="choose another path")
