"""Where the graphs of a bundle stand, for tests that open them by other means than the bundle's."""

from __future__ import annotations

from pathlib import Path

from stc.bundles.bundle import Bundle


def graph_file(bundle: Bundle, name: str) -> Path:
    """The file of graph `name`."""
    return bundle.root / bundle.manifest.graphs[name].file.path
