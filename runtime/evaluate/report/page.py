"""The result as one HTML page that needs nothing else: charts, table, what each figure means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from stc.errors import printable
from stc.runtime.evaluate.report import charts
from stc.runtime.evaluate.report.charts import Line, Point
from stc.runtime.evaluate.report.columns import ANSWERS, COST, FIDELITY, Column, Figures, percent

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --faint: #d8dde3;
  --soft: #5b6570; --back: #eef1f4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --paper: #14171a;
  --faint: #363c43; --soft: #a3adb8; --back: #23282d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 46rem; background: var(--paper);
  color: var(--ink); font: 18px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.25rem 0 .25rem; }
svg { display: block; width: 100%; max-width: 38rem; height: auto; font-size: 13px; }
svg text { fill: var(--ink); } svg .tick { fill: var(--soft); font-size: 12px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.grid { stroke: var(--faint); stroke-width: 1; } .whisker { stroke-width: 2; opacity: .55; }
.label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.line { fill: none; stroke-width: 2.5; } .error { stroke: var(--ink); stroke-width: 1.5; }
.back { fill: var(--back); } .lead { stroke: var(--soft); stroke-width: 1; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 1rem; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid var(--faint); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
dt { font-weight: 600; } dd { margin: 0 0 .6rem; color: var(--soft); }
.legend { columns: 2; font-size: .9rem; } .legend li { break-inside: avoid; }
.soft { color: var(--soft); }
"""
HUES = ("#3b82c4", "#d9772b", "#2a9d74", "#c2569b", "#b8901f", "#7b6fd0", "#c94f4f", "#4a9fb0")
"""Of the classes `c0` to `c7`: legible on light and dark."""
CSS = STYLE + "".join(
    f".c{number} {{ fill: {hue}; stroke: {hue}; }} .line.c{number} {{ fill: none; }} "
    for number, hue in enumerate(HUES[: charts.COLOURS])
)
"""What charts and pages look like."""


def page(document: Figures) -> str:
    """The page of `document`, as `summary` made it: well-formed, in UTF-8, without links."""
    methods: dict[str, Figures] = document["methods"]
    title = f"What compression costs: {document['bundle']}"
    body = [f"<h1>{_text(title)}</h1>", f'<p class="soft">{_text(_on_what(document))}</p>']
    if document["questions"]:
        body += [*_accuracy(methods), *_families(methods), *_baselines(document)]
    body += [*_drift(methods), *_table("All figures", methods, bool(document["questions"]))]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{_text(title)}</title><style>{CSS}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _on_what(document: Figures) -> str:
    first = next(iter(document["methods"].values()))
    said = f"Data: {document['data']}. Scenes: {document['scenes']}, frames: {first['frames']}"
    if document["questions"]:
        said += f", questions: {document['questions']}. Right: {document['scoring']}"
    machine = document["machine"]
    return (
        f"{said}. Measured with {document['backend']}, {document['precision']}, on "
        f"{machine['processor']}, {machine['cores']} cores."
    )


def _accuracy(methods: dict[str, Figures]) -> Iterable[str]:
    def points(name: str) -> list[Point]:
        return [
            Point(label, one[name], one["accuracy"], tuple(one["accuracy_interval"]), number)
            for number, (label, one) in enumerate(methods.items())
        ]

    yield "<h2>Accuracy against the tower's cost</h2>"
    yield '<p class="soft">Up and to the left is better. Whiskers: 95% intervals.</p>'
    title = "tower, share of dense multiply-accumulates"
    yield charts.scatter(points("tower_cost"), title, "accuracy", percent_x=True)
    yield "<h2>Accuracy against tokens kept</h2>"
    title = "tokens read per frame"
    yield charts.scatter(points("tokens_per_frame"), title, "accuracy", percent_x=False)
    yield from _legend(methods)


def _legend(methods: dict[str, Figures]) -> Iterable[str]:
    """Which method has which number, where charts tell them by it."""
    if len(methods) > charts.FEW:
        listed = "".join(f"<li>{_text(label)}</li>" for label in methods)
        yield f'<ol class="legend">{listed}</ol>'


def _families(methods: dict[str, Figures]) -> Iterable[str]:
    first = next(iter(methods.values()))
    yield "<h2>Accuracy by family</h2>"
    for family, figures in first["families"].items():
        yield f"<h3>{_text(family)}, {figures['questions']} questions</h3>"
        rows = [
            Point(label, 0.0, of["accuracy"], tuple(of["accuracy_interval"]), number)
            for number, (label, one) in enumerate(methods.items())
            for of in (one["families"][family],)
        ]
        yield charts.bars(rows, f"accuracy of {family}")


def _baselines(document: Figures) -> Iterable[str]:
    base = document["baselines"]
    yield (
        f"<p>Without looking: chance {percent(base['chance'])}, the commonest answer of each kind "
        f"of question {percent(base['majority'])}, the model without any frame "
        f"{percent(base['blind'])}.</p>"
    )


def _drift(methods: dict[str, Figures]) -> Iterable[str]:
    series = [
        Line(
            label,
            [one["since_reference"] for one in figures["drift"]],
            [one["cosine"] for one in figures["drift"]],
            number,
        )
        for number, (label, figures) in enumerate(methods.items())
        if len(figures["drift"]) > 1
    ]
    if series:
        yield "<h2>Drift since the reference frame</h2>"
        yield '<p class="soft">Mean cosine of tokens with those of dense frames.</p>'
        yield charts.lines(series, "frames since the reference", "cosine")
        if len(series) > charts.FEW:
            yield from _legend(methods)


def _table(title: str, methods: dict[str, Figures], asked: bool) -> Iterable[str]:
    columns = (*(ANSWERS if asked else ()), *COST, *FIDELITY)
    yield f'<h2>{title}</h2><div class="wide"><table>'
    yield _row("th", ["method", *(column.heading for column in columns)])
    for label, figures in methods.items():
        yield _row("td", [label, *(column.written(figures) for column in columns)])
    yield "</table></div>"
    yield from _meanings(columns, methods)


def _meanings(columns: Sequence[Column], methods: dict[str, Figures]) -> Iterable[str]:
    yield "<h2>What they mean</h2><dl>"
    for column in columns:
        yield f"<dt>{_text(column.heading)}</dt><dd>{_text(column.meaning)}</dd>"
    yield "</dl><h2>Methods</h2><dl>"
    for label, one in methods.items():
        source = one["source"] if one["source"] == "control" else f"arXiv {one['source']}"
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items())
        told = f"{one['about']} ({source}, runs in {one['runtime']})"
        yield f"<dt>{_text(label)}</dt><dd>{_text(told)}{'<br/>' if settings else ''}"
        yield f"{_text(settings)}</dd>"
    yield "</dl>"


def _row(cell: str, texts: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{_text(text)}</{cell}>" for text in texts) + "</tr>"


def _text(text: str) -> str:
    """`text` as it may stand in a page: no letter of it is markup, none a control character."""
    return escape(printable(text))
