"""Charts of the page: marks of axes, places of points and labels."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np

from stc.runtime.evaluate.report import charts
from stc.runtime.evaluate.report.charts import Line, Point


def test_ticks_are_round_and_span_the_values() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(random.normal(0, 10.0 ** random.integers(-6, 6), 2))
        marks = charts.ticks(low, high)
        assert marks[0] <= low + 1e-9 and marks[-1] >= high - 1e-9
        assert 2 <= len(marks) <= charts.TICKS + 2
        assert np.allclose(np.diff(marks), marks[1] - marks[0])
    assert charts.ticks(0.5, 0.5)[0] < 0.5 < charts.ticks(0.5, 0.5)[-1]
    assert charts.ticks(0, 0)[-1] > 0
    assert charts.ticks(0, 3, least=1) == [0, 1, 2, 3]


def test_points_stand_where_their_values_are() -> None:
    svg = charts.scatter(
        [Point("a<b", 0.0, 0.2), Point("c", 1.0, 0.6, (0.5, 0.7)), Point("d", 1.0, 0.6)],
        "x",
        "y",
        percent_x=True,
    )
    root = ElementTree.fromstring(svg)
    at = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in root.iter("circle")]
    assert at[0][0] < 80 and at[1][0] == at[2][0] == charts.WIDTH - charts.RIGHT
    assert at[0][1] == charts.HEIGHT - charts.BOTTOM > at[1][1] == at[2][1] > charts.TOP
    labels = [one for one in root.iter("text") if "label" in one.attrib["class"].split()]
    assert {one.text for one in labels} == {"a<b", "c", "d"}
    boxes = []
    for one in labels:
        assert one.text is not None
        x, y, width = float(one.attrib["x"]), float(one.attrib["y"]), 6 * len(one.text)
        start = x - width if "end" in one.attrib["class"].split() else x
        boxes.append((start, start + width, y))
    for number, (start, end, y) in enumerate(boxes):
        for begin, stop, other in boxes[:number]:
            assert stop <= start or end <= begin or abs(y - other) >= 12
    ElementTree.fromstring(charts.lines([Line("a", [0, 1], [1, 0.9])], "x", "y"))


def test_many_methods_are_told_by_their_numbers() -> None:
    points = [Point(f"m{n}", 1.0, 0.5 + n / 100, number=n) for n in range(charts.FEW + 1)]
    for given, shown in ((points[:-1], "m0"), (points, "1")):
        svg = charts.scatter(given, "x", "y", percent_x=True)
        labels = [
            one.text
            for one in ElementTree.fromstring(svg).iter("text")
            if "label" in one.attrib["class"].split()
        ]
        assert len(labels) == len(given) and shown in labels
