"""Charts as SVG: points with intervals, lines, bars. Colours are classes, which the page gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 330
"""Of a chart, in its own units: about the pixels of a phone's width, so that text stays legible."""
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 14, 46
LINE = 15
"""Height of a line of text."""
COLOURS = 8
"""Classes `c0` to `c7`, which come again."""


@dataclass(frozen=True)
class Point:
    """A method at `x`, `y`, with the `interval` of y if it has one."""

    label: str
    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """A method's values `y` at `x`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


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


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` or below to `high` or above, at most about `most` of them."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(count * step, 12) for count in range(first, last + 1)]


def scatter(points: Sequence[Point], x_title: str, y_title: str, *, percent_x: bool) -> str:
    """Points with intervals and their labels beside them; y is a share, x as well if `percent_x`.

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
    for number, point in enumerate(points):
        colour, across, up = f"c{number % COLOURS}", x.at(point.x), y.at(point.y)
        drawn.append(f'<g class="{colour}"><title>{_said(point)}</title>')
        if point.interval:
            low, high = (y.at(end) for end in point.interval)
            drawn.append(f'<path class="whisker" d="M{across} {low}V{high}"/>')
        drawn.append(f'<circle cx="{across}" cy="{up}" r="5"/></g>')
    places = [(x.at(point.x), y.at(point.y), point.label) for point in points]
    return _svg([*drawn, *_labels(places)], f"{y_title} by {x_title}")


def lines(series: Sequence[Line], x_title: str, y_title: str) -> str:
    """Lines with their labels at the right end."""
    across = [value for one in series for value in one.x]
    up = [value for one in series for value in one.y]
    x, y, drawn = _frame(
        ticks(min(across), max(across)),
        ticks(min(up), max(up)),
        (x_title, y_title),
        (False, False),
    )
    places = []
    for number, one in enumerate(series):
        path = "L".join(f"{x.at(a)} {y.at(b)}" for a, b in zip(one.x, one.y, strict=True))
        drawn.append(f'<path class="line c{number % COLOURS}" d="M{path}"/>')
        drawn.extend(
            f'<circle class="c{number % COLOURS}" cx="{x.at(a)}" cy="{y.at(b)}" r="3"/>'
            for a, b in zip(one.x, one.y, strict=True)
        )
        places.append((x.at(one.x[-1]), y.at(one.y[-1]), one.label))
    return _svg([*drawn, *_labels(places)], f"{y_title} by {x_title}")


def bars(rows: Sequence[Point], title: str) -> str:
    """A bar from 0 to 100% for each row's y, with its interval, its label above it."""
    axis, step = _Axis(0, 1, 4, WIDTH - 60), 40
    drawn = []
    for number, row in enumerate(rows):
        top, end = number * step, axis.at(row.y)
        colour, middle = f"c{number % COLOURS}", top + 26
        drawn.append(f'<text x="4" y="{top + 14}">{escape(row.label)}</text>')
        drawn.append(
            f'<g class="{colour}"><title>{_said(row)}</title>'
            f'<rect class="back" x="4" y="{top + 20}" width="{WIDTH - 64}" height="12"/>'
            f'<rect x="4" y="{top + 20}" width="{round(end - 4, 1)}" height="12"/>'
        )
        if row.interval:
            low, high = (axis.at(value) for value in row.interval)
            drawn.append(f'<path class="error" d="M{low} {middle}H{high}"/>')
        drawn.append(f'</g><text x="{WIDTH - 54}" y="{top + 31}">{100 * row.y:.1f}%</text>')
    return _svg(drawn, title, len(rows) * step + 4)


def _frame(
    across: list[float], up: list[float], titles: tuple[str, str], percents: tuple[bool, bool]
) -> tuple[_Axis, _Axis, list[str]]:
    """Both axes, and their grid and texts."""
    x = _Axis(across[0], across[-1], LEFT, WIDTH - RIGHT)
    y = _Axis(up[0], up[-1], HEIGHT - BOTTOM, TOP)
    drawn = []
    for value in up:
        at, text = y.at(value), _tick(value, up, percents[1])
        drawn.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        drawn.append(f'<text class="tick end" x="{LEFT - 6}" y="{at + 4}">{text}</text>')
    for value in across:
        at, text = x.at(value), _tick(value, across, percents[0])
        drawn.append(f'<path class="grid" d="M{at} {TOP}V{HEIGHT - BOTTOM}"/>')
        drawn.append(f'<text class="tick middle" x="{at}" y="{HEIGHT - BOTTOM + 16}">{text}</text>')
    centre, below = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8
    drawn.append(f'<text class="middle" x="{centre}" y="{below}">{escape(titles[0])}</text>')
    # What is up is told by the heading above the chart too; turned text takes no width.
    drawn.append(
        f'<text class="tick middle" transform="translate(11 {HEIGHT / 2}) rotate(-90)">'
        f"{escape(titles[1])}</text>"
    )
    return x, y, drawn


def _tick(value: float, among: list[float], percent: bool) -> str:
    step = (among[1] - among[0]) * (100 if percent else 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    shown = f"{value * (100 if percent else 1):.{digits}f}"
    return f"{shown}%" if percent else shown


def _labels(places: Sequence[tuple[float, float, str]]) -> list[str]:
    """Labels beside their points, moved up or down until none lies on another."""
    drawn: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for across, up, label in sorted(places, key=lambda place: place[1]):
        left = across > (LEFT + WIDTH) / 2
        width = 7 * len(label)
        start = across - 9 - width if left else across + 9
        at = up + 4
        while any(
            abs(at - other) < LINE and start < end and begin < start + width
            for other, begin, end in taken
        ):
            at += 1
        taken.append((at, start, start + width))
        anchor, place = ("end", across - 9) if left else ("start", across + 9)
        drawn.append(
            f'<text class="{anchor} label" x="{place}" y="{round(at, 1)}">{escape(label)}</text>'
        )
    return drawn


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
