"""The result as files beside the finished scenes: two tables in CSV and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stc.runtime.evaluate.data import Data
from stc.runtime.evaluate.report.columns import Figures
from stc.runtime.evaluate.report.page import page
from stc.runtime.evaluate.store import written
from stc.runtime.evaluate.summary import Records, question_rows
from stc.runtime.output import whole_file

NAMES = ("questions.csv", "methods.csv", "report.html")


def write_report(root: Path, document: Figures, data: Data, records: Mapping[str, Records]) -> None:
    """`questions.csv`, `methods.csv` and `report.html` stand in `root`, whole.

    Raises SettingsError when one cannot be written.
    """
    texts = (
        _csv(question_rows(data, document["methods"], records)),
        _csv(_method_rows(document["methods"])),
        page(document),
    )
    for name, text in zip(NAMES, texts, strict=True):
        with written(root / name), whole_file(root / name) as file:
            file.write(text.encode())


def _method_rows(methods: Mapping[str, Figures]) -> Iterable[dict[str, Any]]:
    """Of each method a flat row: lists by their ends, families by their accuracy."""
    for label, figures in methods.items():
        row: dict[str, Any] = {"method": label}
        for name, value in figures.items():
            if name == "families":
                row |= {f"accuracy_{family}": one["accuracy"] for family, one in value.items()}
            elif name.endswith("interval"):
                low, high = value or (None, None)
                row |= {f"{name}_low": low, f"{name}_high": high}
            elif name not in ("drift", "settings"):
                row[name] = value
        yield row


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    out, made = io.StringIO(), list(rows)
    if made:
        writer = csv.DictWriter(out, made[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(made)
    return out.getvalue()
