"""What of a bundle's folder of engines is stc's own: the engines its lists name, and few others.

    BUNDLE/engines/<targets>/engines.json  names the engines beside it

Knows nothing of what engines are; `stc.engines.library.library` writes them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pydantic_core import from_json

from stc.bundles.part_file import part_of

ENGINES = "engines"
LIST = "engines.json"
LOCK = ".lock"
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
    file = folder / LIST
    if file.is_symlink() or not file.is_file():
        return set()
    try:
        document = from_json(file.read_bytes())
    except ValueError:
        return set()
    if not isinstance(document, dict):
        return set()
    engines, unfinished = document.get("engines"), document.get("unfinished")
    names = [*(engines if isinstance(engines, dict) else ())]
    names += unfinished if isinstance(unfinished, list) else ()
    return {name for name in names if isinstance(name, str) and is_engine_name(name)}
