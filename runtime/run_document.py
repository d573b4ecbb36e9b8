"""The document of a run: what `--json` writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stc.errors import SettingsError
from stc.runtime.comparison import DenseComparison
from stc.runtime.machine import machine_facts
from stc.runtime.metrics import StreamSummary
from stc.runtime.whole_file import whole_file
from stc.settings import Settings


def run_document(
    summary: StreamSummary,
    *,
    settings: Settings,
    bundle: str,
    comparison: DenseComparison | None = None,
) -> dict[str, Any]:
    """`summary` with all it takes to judge or repeat it, as dicts, lists and finite numbers.

    `bundle` names the model, `comparison` is null in the document where there is none.
    """
    return {
        "bundle": bundle,
        "settings": asdict(settings),
        "summary": summary.to_json(),
        "against_dense": comparison.to_json() if comparison else None,
        "machine": machine_facts(),
    }


def write_document(path: Path | str, document: dict[str, Any]) -> None:
    """`path` holds `document` as JSON; it is never half written.

    Raises SettingsError when it cannot be written.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    try:
        with whole_file(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise SettingsError(
            path,
            f"cannot be written ({error.strerror or error})",
            mend="check its folder and the space left, or choose another path",
        ) from error
