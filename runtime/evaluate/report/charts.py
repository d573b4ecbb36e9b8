"""Charts as SVG: points with intervals, lines, bars. Colours are classes, which the page gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 330
"""Of a chart, in its own units: about the pixels of a phone's width, so that text stays legible."""
RIGHT, TOP, BOTTOM = 22, 14, 46
LINE = 15
"""Height of a line of text."""
LETTER = 7.2
"""Width of a letter of a label."""
DOT = 5
"""Radius of a point."""
FEW = 8
"""More methods than so many are told by their number."""
STEPS = [0.0, *(sign * LINE * count for count in range(1, 9) for sign in (-1, 1))]
"""How far labels move up or down."""
TICKS = 6
NAMES, ROW = 140, 24
"""Of bars: width of their labels, height of a row."""
COLOURS = 8
"""Classes `c0` to `c7`, which come again."""
_Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Point:
    """A method at `x`, `y`, with the `interval` of y if it has one; `number` counts from 0."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None
    number: int = 0


@dataclass(frozen=True)
class Line:
    """A method's values `y` at `x`; `number` counts from 0."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    number: int = 0


@dataclass(frozen=True)
class Bar:
    """A `value` of at least 0, `told` beside its bar; `number` counts from 0."""

    label: str
    value: float
    told: str
    number: int = 0


@dataclass(frozen=True)
class _Axis:
    """Values `low` to `high` along `start` to `end` of the chart."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """About six round numbers from `low` or below to `high` or above, at least `least` apart."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = max((high - low) / TICKS, least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(count * step, 12) for count in range(first, last + 1)]


def scatter(points: Sequence[Point], x_title: str, y_title: str, *, percent_x: bool) -> str:
    """Points with intervals and their names beside them; y is a share, x as well if `percent_x`.

    The x axis begins at 0.
    """
    values = [point.y for point in points]
    values += [end for point in points if point.interval for end in point.interval]
    x, y, drawn = _frame(
        ticks(0, max(point.x for point in points)),
        ticks(min(values), max(values)),
        (x_title, y_title),
        (percent_x, True),
    )
    for point in points:
        colour, across, up = f"c{point.number % COLOURS}", x.at(point.x), y.at(point.y)
        drawn.append(f'<g class="{colour}"><title>{_said(point)}</title>')
        if point.interval:
            low, high = (y.at(end) for end in point.interval)
            drawn.append(f'<path class="whisker" d="M{across} {low}V{high}"/>')
        drawn.append(f'<circle cx="{across}" cy="{up}" r="{DOT}"/></g>')
    places = [(x.at(one.x), y.at(one.y), _named(one, len(points))) for one in points]
    return _svg([*drawn, *_labels(places, x.start)], f"{y_title} by {x_title}")


def lines(series: Sequence[Line], x_title: str, y_title: str) -> str:
    """Lines with their names at the right end; x are whole numbers."""
    across = [value for one in series for value in one.x]
    up = [value for one in series for value in one.y]
    x, y, drawn = _frame(
        ticks(min(across), max(across), least=1),
        ticks(min(up), max(up)),
        (x_title, y_title),
        (False, False),
    )
    places = []
    for one in series:
        colour = f"c{one.number % COLOURS}"
        path = "L".join(f"{x.at(a)} {y.at(b)}" for a, b in zip(one.x, one.y, strict=True))
        drawn.append(f'<path class="line {colour}" d="M{path}"/>')
        drawn.extend(
            f'<circle class="{colour}" cx="{x.at(a)}" cy="{y.at(b)}" r="3"/>'
            for a, b in zip(one.x, one.y, strict=True)
        )
        places.append((x.at(one.x[-1]), y.at(one.y[-1]), _named(one, len(series))))
    return _svg([*drawn, *_labels(places, x.start)], f"{y_title} by {x_title}")


def bars(rows: Sequence[Point], title: str) -> str:
    """A bar from 0 to 100% for each row's y, with its interval, beside its label and figure."""
    axis = _Axis(0, 1, NAMES, WIDTH - 50)
    drawn = []
    for number, row in enumerate(rows):
        top, end = number * ROW + 5, axis.at(row.y)
        shown = row.label if len(row.label) < 21 else f"{row.label[:19]}…"
        whole, width = axis.end - axis.start, round(end - axis.start, 1)
        drawn.append(
            f"<g><title>{_said(row)}</title>"
            f'<text x="0" y="{top + 11}">{escape(shown)}</text>'
            f'<rect class="back" x="{NAMES}" y="{top}" width="{whole}" height="14"/>'
            f'<rect class="c{row.number % COLOURS}" x="{NAMES}" y="{top}" width="{width}" '
            'height="14"/>'
        )
        if row.interval:
            low, high = (axis.at(value) for value in row.interval)
            drawn.append(f'<path class="error" d="M{low} {top + 7}H{high}"/>')
        drawn.append(f'<text x="{WIDTH - 44}" y="{top + 11}">{100 * row.y:.1f}%</text></g>')
    return _svg(drawn, title, len(rows) * ROW + 4)


def amounts(groups: Mapping[str, Sequence[Bar]], title: str, note: str) -> str:
    """A heading for each group, and its bars below; all on one scale, from 0 to the largest.

    `title` and `note` stand above, a line each.
    """
    most = max((one.value for bars in groups.values() for one in bars), default=0.0) or 1.0
    axis = _Axis(0, most, NAMES, WIDTH - 70)
    drawn = [
        f'<text x="0" y="{LINE}">{escape(title)}</text>',
        f'<text class="tick" x="0" y="{2 * LINE}">{escape(note)}</text>',
    ]
    top = 3.0 * LINE
    for heading, rows in groups.items():
        drawn.append(f'<text x="0" y="{top + LINE}">{escape(heading)}</text>')
        top += ROW
        for row in rows:
            width = round(axis.at(row.value) - axis.start, 1)
            drawn.append(
                f"<g><title>{escape(f'{heading}, {row.label}: {row.told}')}</title>"
                f'<text class="tick" x="8" y="{top + 11}">{escape(row.label)}</text>'
                f'<rect class="c{row.number % COLOURS}" x="{NAMES}" y="{top}" width="{width}" '
                f'height="11"/><text class="tick" x="{NAMES + width + 4}" y="{top + 11}">'
                f"{escape(row.told)}</text></g>"
            )
            top += LINE
        top += LINE / 2
    return _svg(drawn, title, top)


def alone(svg: str, style: str) -> str:
    """`svg`, as functions here make them, as a file of its own: with its `style`, on paper."""
    head, _, rest = svg.partition(">")
    named = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    paper = '<rect width="100%" height="100%" style="fill: var(--paper)"/>'
    return f"{named}><style>{escape(style)}</style>{paper}{rest}\n"


def _frame(
    across: list[float], up: list[float], titles: tuple[str, str], percents: tuple[bool, bool]
) -> tuple[_Axis, _Axis, list[str]]:
    """Both axes, and their grid and texts."""
    beside = [_tick(value, up, percents[1]) for value in up]
    left, right, foot = 24 + LETTER * max(map(len, beside)), WIDTH - RIGHT, HEIGHT - BOTTOM
    x, y = _Axis(across[0], across[-1], left, right), _Axis(up[0], up[-1], foot, TOP)
    drawn = []
    for value, text in zip(up, beside, strict=True):
        at = y.at(value)
        drawn.append(f'<path class="grid" d="M{left} {at}H{right}"/>')
        drawn.append(f'<text class="tick end" x="{left - 6}" y="{at + 4}">{text}</text>')
    for value in across:
        at, text = x.at(value), _tick(value, across, percents[0])
        drawn.append(f'<path class="grid" d="M{at} {TOP}V{foot}"/>')
        drawn.append(f'<text class="tick middle" x="{at}" y="{foot + 16}">{text}</text>')
    centre, below = round((left + right) / 2, 1), HEIGHT - 8
    drawn.append(f'<text class="middle" x="{centre}" y="{below}">{escape(titles[0])}</text>')
    drawn.append(
        f'<text class="tick middle" transform="translate(11 {(TOP + foot) / 2}) rotate(-90)">'
        f"{escape(titles[1])}</text>"
    )
    return x, y, drawn


def _tick(value: float, among: list[float], percent: bool) -> str:
    step = (among[1] - among[0]) * (100 if percent else 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    shown = f"{value * (100 if percent else 1):.{digits}f}"
    return f"{shown}%" if percent else shown


def _named(one: Point | Line, among: int) -> str:
    """Its label, or where there are many its number, from 1."""
    return one.label if among <= FEW else str(one.number + 1)


def _labels(places: Sequence[tuple[float, float, str]], start: float) -> list[str]:
    """Labels beside their points, where none lies on another or on a point; a thin line leads to
    those that had to move away."""
    taken = [(across - DOT, up - DOT, across + DOT, up + DOT) for across, up, _ in places]
    drawn = []
    for across, up, label in sorted(places, key=lambda place: place[1]):
        spots = [_spot(across, up, label, side, step) for step in STEPS for side in (1, -1)]
        inside = [one for one in spots if one[0] >= start and one[2] <= WIDTH and one[1] >= 0]
        spot = next((one for one in inside if not _meets(one, taken)), [*inside, *spots][0])
        taken.append(spot)
        left, top, right, bottom = spot
        near, anchor = (left, "start") if left > across else (right, "end")
        middle = round((top + bottom) / 2, 1)
        if abs(middle - up) > LINE:
            drawn.append(f'<path class="lead" d="M{across} {up}L{round(near, 1)} {middle}"/>')
        drawn.append(
            f'<text class="label {anchor}" x="{round(near, 1)}" y="{round(bottom - 3, 1)}">'
            f"{escape(label)}</text>"
        )
    return drawn


def _spot(across: float, up: float, label: str, side: int, step: float) -> _Box:
    """The box of `label` on one side of its point, moved down by `step`."""
    width, top = LETTER * len(label), up + step - LINE / 2
    near = across + side * (DOT + 3)
    return (
        (near, top, near + width, top + LINE) if side > 0 else (near - width, top, near, top + LINE)
    )


def _meets(box: _Box, others: Sequence[_Box]) -> bool:
    left, top, right, bottom = box
    return any(
        left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
        for other in others
    )


def _said(point: Point) -> str:
    interval = ""
    if point.interval:
        interval = " ({:.1f} to {:.1f})".format(*(100 * end for end in point.interval))
    return escape(f"{point.label}: {100 * point.y:.1f}%{interval}")


def _svg(drawn: Sequence[str], title: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(drawn)
        + "</svg>"
    )
