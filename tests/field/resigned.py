"""A bundle altered on purpose, its manifest made to agree with what its files are now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """`change` was made to the manifest of `bundle`."""
    file = bundle / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def resign(bundle: Path) -> None:
    """Every digest and size of the manifest is that of its file as it stands."""
    edit_manifest(bundle, lambda document: resign_as(bundle, document))


def listed(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of all files in the manifest `document`."""
    kinds = [document["graphs"], *(one["graphs"] for one in document["variants"].values())]
    return [*(graph["file"] for kind in kinds for graph in kind.values()), *document["files"]]


def resign_as(root: Path, document: dict[str, Any]) -> None:
    """The manifest `document` has the digests and sizes of the files below `root`."""
    for entry in listed(document):
        content = (root / entry["path"]).read_bytes()
        entry["sha256"] = hashlib.sha256(content).hexdigest()
        entry["size_bytes"] = len(content)
