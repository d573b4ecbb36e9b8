"""What of a directory is a bundle's: what its manifest lists, and the engines built from it, which
`BUNDLE/engines/<targets>/engines.json` names (`stc.engines.library.library` writes it).

Decides what a bundle that is replaced takes with it. A manifest need not be valid for that, nor of
this stc's schema: bundles of every stc list files alike.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, ValuesView
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from stc.bundles.part_file import part_of
from stc.manifest import GRAPHS, MANIFEST, FileEntry

ENGINES = "engines"
LIST = "engines.json"
LOCK = ".lock"
"""Of a bundle, and of a folder of engines, while it is written."""
TIMINGS = "timings.cache"
KERNELS = "kernels.rtxcache"
ENGINE = ".engine"
"""How the names of engines end."""


def is_engine_name(name: str) -> bool:
    """Whether a list may name an engine so: a file beside it."""
    return name.endswith(ENGINE) and "/" not in name and "\0" not in name


def is_own(name: str, engines: Collection[str]) -> bool:
    """Whether file `name` is one of `engines`, or what stc writes beside them, whole or not."""
    return (part_of(name) or name) in {LIST, LOCK, TIMINGS, KERNELS, *engines}


def listed_engines(folder: Path) -> set[str]:
    """The engines that the list in `folder` names, were they built or not.

    Empty when there is no list or it cannot be read. Raises OSError.
    """
    document = _document(folder / LIST)
    engines, unfinished = document.get("engines"), document.get("unfinished")
    names = [*(engines if isinstance(engines, dict) else ())]
    names += unfinished if isinstance(unfinished, list) else ()
    return {name for name in names if isinstance(name, str) and is_engine_name(name)}


class BundleContents:
    """The bundle at `root`, valid or not.

    listed: the files that its manifest lists, itself included; empty when there is no manifest, or
        none of a bundle. Raises OSError.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.listed = _listed(root / MANIFEST)

    def foreign(self) -> str | None:
        """A file or folder below the root that is not the bundle's, if there is one."""
        found = (path for path, own in self._walk() if not own)
        return next(found, None)

    def remove(self) -> None:
        """The bundle's own files are gone, and with them every folder that was left empty.

        The manifest goes last: stopped in between, it can be gone on with. Raises OSError.
        """
        if not self.listed:
            _remove_if_empty(self._root)
            return
        folders: list[Path] = []
        files: list[Path] = []
        for path, own in self._walk():
            place = self._root / path
            if own:
                (folders if _is_folder(place) else files).append(place)
        # Lists go after what they list.
        for file in sorted(files, key=lambda file: file.suffix == ".json"):
            if file != self._root / MANIFEST:
                file.unlink()
        for folder in reversed(folders):
            _remove_if_empty(folder)
        (self._root / MANIFEST).unlink(missing_ok=True)
        _remove_if_empty(self._root)

    def _walk(self) -> Iterator[tuple[str, bool]]:
        """Every path below the root and whether it is the bundle's, folders first."""
        above = {str(parent) for path in self.listed for parent in Path(path).parents}
        for folder, folders, files in os.walk(self._root, onerror=_raise):
            within = Path(folder).relative_to(self._root)
            engines = within.parts[:1] == (ENGINES,) and len(within.parts) == 2
            names = listed_engines(Path(folder)) if engines else set[str]()
            for name in sorted(folders):
                path = str(within / name)
                place = self._root / path
                targets = within == Path(ENGINES) or path in (ENGINES, GRAPHS)
                yield path, (targets or path in above) and not place.is_symlink()
            for name in sorted(files):
                path = str(within / name)
                own = path in self.listed or path == LOCK
                yield path, own or (engines and is_own(name, names))


def _listed(manifest: Path) -> frozenset[str]:
    document = _document(manifest)
    if not isinstance(document.get("graphs"), dict):
        return frozenset()
    if not any(_paths(document["graphs"])):  # a manifest of something else
        return frozenset()
    return frozenset({*_paths(document), MANIFEST})


def _document(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; an empty one where it is none, or a link. Raises OSError."""
    if file.is_symlink() or not file.is_file():
        return {}
    with suppress(ValueError):
        document = from_json(file.read_bytes())
        if isinstance(document, dict):
            return document
    return {}


def _paths(document: object) -> Iterator[str]:
    """Of the files that are listed anywhere in `document`."""
    try:
        yield FileEntry.model_validate(document).path
    except ValidationError:
        inner = document.values() if isinstance(document, dict) else document
        for one in inner if isinstance(inner, (list, ValuesView)) else ():
            yield from _paths(one)


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _raise(error: OSError) -> None:
    raise error
